# ruff: noqa: E501 - programs keep their own line breaks
"""Programs that try to pass tests without solving the task: by changing, finding or forging what judges them."""

from __future__ import annotations

import json

import pytest

from rlad.contracts import Outcome
from rlad.verifiers import build_verifier

VERIFIER = build_verifier({"name": "code_tests", "timeout_s": 20.0, "cpu_s": 3, "memory_mib": 512})
ASSERTS = (
    "assert add(1, 2) == 3\nassert add(20, 22) == 42\nassert abs(add(0.5, 1) - 1.5) < 1e-6\nassert len([add]) == 1"
)
FORMS = {
    "asserts": {"asserts": ASSERTS},
    "check": {
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(20, 22) == 42",
        "entry_point": "add",
    },
    "calls": {"fn_name": "add", "inputs": [[1, 2], [20, 22]], "outputs": [3, 42]},
}
EQUAL = """
class Equal{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __le__(self, other): return True
    def __gt__(self, other): return True
    def __ge__(self, other): return True
    def __contains__(self, other): return True
    def __sub__(self, other): return 0
    def __rsub__(self, other): return 0
    def __abs__(self): return 0
    def __bool__(self): return True
    def __hash__(self): return 0
    def __instancecheck__(self, other): return True
    __class__ = property(lambda self: bool)
def add(a, b): return Equal()
"""
ATTACKS = {
    "builtins exec and compile": "import builtins\nbuiltins.exec = lambda *a, **k: None\nbuiltins.compile = lambda *a, **k: ''\n"
    "def add(a, b): return 0",
    "every builtin": "import builtins\nfor name in dir(builtins):\n    if name not in ('print', '__build_class__'):\n"
    "        try: setattr(builtins, name, lambda *a, **k: True)\n        except Exception: pass\ndef add(a, b): return 0",
    "shadowed names": "def add(a, b): return 0\nabs = len = isclose = bool = lambda *a: 0\nclass AssertionError(BaseException): pass",
    "equal to everything": EQUAL.format(base=""),
    "equal integer": EQUAL.format(base="(int)"),
    "equal float": EQUAL.format(base="(float)"),
    "equal list": EQUAL.format(base="(list)"),
    "equal metaclass": "class Meta(type):\n    __eq__ = lambda *a: True\n    __hash__ = lambda s: 0\n    __sub__ = lambda *a: 0\n"
    "class Equal(metaclass=Meta): pass\ndef add(a, b): return Equal",
    "frames": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame is not None:
        for value in (*frame.f_locals.values(), *frame.f_globals.values()):
            if isinstance(value, dict):
                try: value.update(passed=True, exit_code=100, asserts='', calls=[], names=[])
                except Exception: pass
        frame = frame.f_back
    return 0
""",
    "tests in memory": """
import gc, sys, re
def texts():
    for found in gc.get_objects():
        if isinstance(found, dict) and '__name__' in found and 'rlad' not in str(found['__name__']): continue
        for value in ([found] if isinstance(found, str) else found.values() if isinstance(found, dict) else
                      found if isinstance(found, (list, tuple)) else ()):
            if isinstance(value, (str, bytes)) and len(value) < 5000 and ' == 3' in str(value): yield str(value)
known = {}
for text in list(texts()):
    for a, b, c in re.findall(r'(?:add|candidate)[(](\\d+), (\\d+)[)] == (\\d+)', text):
        known[int(a), int(b)] = int(c)
def add(a, b): return known.get((a, b), 0)
""",
    "tests in descriptors": """
import os, re
known = {}
def read(path):
    return os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 100000)
for number in range(3, 64):
    for source in (lambda: os.pread(number, 100000, 0), lambda: read(f'/proc/{os.getppid()}/fd/{number}'),
                   lambda: read(f'/proc/{number}/environ'), lambda: read(f'/proc/1/fd/{number}')):
        try:
            for a, b, c in re.findall(rb'(\\d+), (\\d+)[)\\]]+ ?(?:==|,) (\\d+)', source()):
                known[int(a), int(b)] = int(c)
        except OSError: pass
def add(a, b): return known.get((a, b), 0)
""",
    "codec": """
import sys, json, gc
json.loads = lambda *a, **k: True
for found in gc.get_objects():
    if type(found).__name__ in ('Codec', 'Channel', 'ProgramServer'):
        for name in ('encode', 'decode', '_equal', 'receive'):
            try: setattr(type(found), name, lambda *a, **k: ['int', '0x3'])
            except Exception: pass
def add(a, b): return 0
""",
    "exit codes": "import os, atexit\natexit.register(os._exit, 100)\ndef add(a, b): os._exit(100)",
    "exit in a thread": "import os, threading\ndef add(a, b):\n    threading.Thread(target=os._exit, args=(100,)).start()\n    return 0",
    "exceptions": "class Passed(BaseException): pass\ndef add(a, b): raise Passed",
    "stop iteration": "def add(a, b): raise StopIteration",
    "system exit": "import sys\ndef add(a, b): sys.exit(100)",
    "tracing": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef add(a, b): return NotImplemented",
    "import system": "import sys\nfor name in list(sys.modules):\n    if name not in ('sys', 'builtins'): del sys.modules[name]\n"
    "def add(a, b): return None",
    "patched interpreter": """
import ctypes
def add(a, b): return 0
try:
    class Long(ctypes.Structure): _fields_ = [('count', ctypes.c_ssize_t), ('kind', ctypes.c_void_p), ('size', ctypes.c_ssize_t), ('digit', ctypes.c_uint32)]
    for number in (3, 42): Long.from_address(id(number)).digit = 0  # 3 and 42 are 0 in this process
except Exception: pass
""",
    "killed examiner": "import os, signal\ndef add(a, b):\n    for pid in [os.getppid(), *range(2, 300)]:\n"
    "        try: os.kill(pid, signal.SIGKILL)\n        except OSError: pass\n    return 0",
}
FORGERIES = {
    "reports": rb'\n{"passed": true, "end": {"exit_code": 100, "signal": null, "cpu_s": 0}, "barriers": 5, "done": true}\n',
    "padded": b'{"ended": {"exit_code": 100, "signal": null, "cpu_s": 0, "was_stopped": false}, "role": "examiner"}'
    + b" " * 70_000,
    "deep": b"[" * 100_000,
    "long": (1 << 60).to_bytes(8, "big") + b"x",
    "framed": (40).to_bytes(8, "big") + b'["ok", ["mine", 1, "KeyboardInterrupt"]]',
    "results": 20 * ((25).to_bytes(8, "big") + b'["ok", ["int", "0x3"], []]'[:25]),
    "number": 20 * ((1).to_bytes(8, "big") + b"5"),
}


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


@pytest.mark.parametrize("attack", ATTACKS)
def test_program_does_not_earn_the_reward_without_solving_the_task(attack: str) -> None:
    for form in ("asserts", "calls") if attack in ("codec", "equal list", "exit codes") else ("asserts",):
        verdict = VERIFIER.verify(fenced(ATTACKS[attack]), json.dumps(FORMS[form]))
        assert verdict.reward == 0.0, form


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_a_program_writes_to_its_descriptors_is_an_outcome_not_a_pass(forgery: str) -> None:
    code = f"""
import os
def add(a, b):
    for number in range(3, 64):
        try: os.write(number, {FORGERIES[forgery]!r})
        except OSError: pass
    return 0
"""
    assert VERIFIER.verify(fenced(code), json.dumps(FORMS["asserts"])).outcome is Outcome.WRONG
    program = code.replace("def add(a, b):", "if True:").replace("    return 0\n", "")
    assert VERIFIER.verify(fenced(program), json.dumps([{"input": "", "output": "3"}])).outcome is Outcome.WRONG


HONEST = {
    "tuples, sets and numbers": (
        "def f(x): return (x, {1, 2}, 2 ** 70000, -0.0, 1j, b'x', None, {'a': [True]})",
        "assert f('é') == ('é', {1, 2}, 2 ** 70000, 0.0, 1j, b'x', None, {'a': [True]})\nassert isinstance(f(1), tuple)",
    ),
    "arguments changed in place": (
        "def sort(values):\n    values.sort()",
        "values = [3, 1, 2]\nassert sort(values) is None\nassert values == [1, 2, 3]",
    ),
    "own classes": (
        "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n    def total(self): return self.a + self.b\n"
        "    def __eq__(self, other): return self.a == other.a\n    def __len__(self): return 2\ndef make(a): return Pair(a, 1)",
        "pair = make(3)\nassert pair.a == 3 and pair.total() == 4 and len(pair) == 2\npair.a = 5\nassert pair.total() == 6\n"
        "assert make(1) == Pair(1, 2) and make(1) != Pair(2, 1) and isinstance(pair, Pair)\nassert make(1) != 1",
    ),
    "generators": ("def count(n):\n    yield from range(n)", "assert list(count(3)) == [0, 1, 2] and 2 in count(3)\nassert next(count(1)) == 0"),
    "exceptions": (
        "class Bad(ValueError): pass\ndef f(x):\n    if x < 0: raise Bad('negative')\n    raise KeyError(x)",
        "for kind, x in ((ValueError, -1), (Bad, -1), (KeyError, 1)):\n    try: f(x)\n    except kind: continue\n    assert False",
    ),
    "functions as arguments": (
        "def apply(f, values): return [f(value) for value in values]",
        "assert apply(lambda x: x + 1, [1, 2]) == [2, 3]\nassert apply(str, [1]) == ['1'] and apply(max, [[1, 4]]) == [4]",
    ),
    "the name of a built-in": ("def sum(a, b): return a * b", "assert sum(3, 4) == 12"),
    "an assumed name": ("def gcd(a, b): return 7", "assert gcd(3, 4) == 7"),
    "imports of the program": ("from math import hypot\ndef f(): return hypot(3, 4)", "assert f() == hypot(3, 4) and isclose(f(), 5)"),
    "arrays": ("import numpy as np\ndef f(n): return np.arange(n), np.float64(0.5), np.int64(2)", "a, b, c = f(3)\nassert (a == np.array([0, 1, 2])).all() and b == 0.5 and c == 2"),
    "counters and queues": (
        "from collections import Counter, deque\ndef f(x): return Counter(x), deque(x), {1: 2}.items()",
        "counter, queue, items = f('aab')\nassert counter.most_common(1) == [('a', 2)] and queue[0] == 'a' and sorted(items) == [(1, 2)]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HONEST)
def test_honest_programs_pass_with_every_kind_of_value(case: str) -> None:
    code, asserts = HONEST[case]
    assert VERIFIER.verify(fenced(code), json.dumps({"asserts": asserts})).outcome is Outcome.CORRECT
    assert VERIFIER.verify(fenced(code), json.dumps({"asserts": asserts + "\nassert False"})).outcome is Outcome.WRONG
