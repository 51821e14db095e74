"""Child process of the sandbox, started as `python -I sandbox_child.py` by `rlad.sandbox.session`.

A program that walks the frames below its own finds this module only, which holds nothing of the sandbox by then.
"""

import pathlib
import sys


def start():  # type: ignore[no-untyped-def]  # annotations would keep modules in reach
    """Serve the sandbox. Return what this process executes if it is a restricted one, else None."""
    root = str(pathlib.Path(__file__).parents[2])
    sys.path.insert(0, root)
    from rlad.sandbox.inside import program, server

    job = server.main(sys.argv[1:])
    if job is None:
        return None
    prepared = program.prepare(job)
    sys.path.remove(root)
    return prepared


if __name__ == "__main__":
    prepared = start()
    if prepared is not None:
        codes, namespace, finish = prepared
        del start, prepared, pathlib
        while codes:
            exec(codes.pop(0), namespace)
        finish()
