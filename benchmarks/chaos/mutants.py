"""Mutants: named faults in a copy of the code, each of which must fail the tests that are named with it.

python -m benchmarks.chaos.mutants --json OUT

The faults are those that train on without an error: a shift by one position, a flipped sign, a dropped mask, a check
that is skipped. `CONTRIBUTING.md` describes the mutation tool, which finds further ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import JsonPath

_ROOT = Path(__file__).parents[2]
_COPIED = ("rlad", "actors", "pipelines", "benchmarks", "examples", "tools", "configs", "tests")
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A fault in the code.

    Attributes:
        name: What is wrong.
        file: File that contains it.
        old: Correct text, which occurs once in the file.
        new: Text of the mutant.
        tests: Tests that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Outcome of the tests of a mutant.

    Attributes:
        name: Name of the mutant.
        killed_by: First test that failed; None if all passed.
        elapsed_s: Duration of the tests, seconds.
    """

    name: str
    killed_by: str | None
    elapsed_s: float


def _mutant(name: str, file: str, old: str, new: str, tests: str) -> Mutant:
    return Mutant(name=name, file=file, old=old, new=new, tests=f"tests/unit/{tests}")


MUTANTS = (
    _mutant(
        "log-probabilities one position late",
        "rlad/packing.py",
        "column[first : length - 1] = np.where(is_valid, values, 0)",
        "column[first + 1 : length] = np.where(is_valid, values, 0)",
        "rlad/test_packing.py",
    ),
    _mutant(
        "targets are the tokens themselves",
        "rlad/packing.py",
        "np.append(token_ids[1:], 0)",
        "token_ids",
        "rlad/test_packing.py",
    ),
    _mutant(
        "tokens with NaN scores are trained on",
        "rlad/packing.py",
        "has_behaviour & has_teacher & has_reference",
        "has_behaviour & has_reference",
        "rlad/test_packing.py",
    ),
    _mutant(
        "teacher's part of the ratio has the other sign",
        "rlad/objectives/trrd.py",
        "+ (1 - config.alpha) * clamped",
        "- (1 - config.alpha) * clamped",
        "rlad/objectives/test_trrd.py",
    ),
    _mutant(
        "alpha and 1 - alpha exchanged",
        "rlad/objectives/trrd.py",
        "config.alpha * to_behaviour + (1 - config.alpha) * clamped",
        "(1 - config.alpha) * to_behaviour + config.alpha * clamped",
        "rlad/objectives/test_trrd.py",
    ),
    _mutant(
        "the larger surrogate instead of the smaller",
        "rlad/objectives/ratios.py",
        "torch.minimum(unclipped, clipped)",
        "torch.maximum(unclipped, clipped)",
        "rlad/objectives/test_grpo.py",
    ),
    _mutant(
        "advantages have the other sign",
        "rlad/advantages.py",
        "deviations = values - values.mean()",
        "deviations = values.mean() - values",
        "rlad/test_advantages.py",
    ),
    _mutant(
        "unjudged responses count in the baseline",
        "rlad/advantages.py",
        "group_advantages(values[judged], estimator)",
        "group_advantages(values, estimator)[judged]",
        "rlad/test_unjudged_responses.py",
    ),
    _mutant(
        "gradient without the temperature",
        "rlad/logprobs.py",
        "scale = grad_logprobs[chunk] / ctx.temperature",
        "scale = grad_logprobs[chunk]",
        "rlad/test_logprobs.py",
    ),
    _mutant(
        "answers of replaced attempts are taken",
        "rlad/ledger.py",
        "if attempt != current:",
        "if attempt > current:",
        "rlad/test_ledger.py",
    ),
    _mutant(
        "groups that are trained on twice are not counted",
        "rlad/ledger.py",
        "HAVING COUNT(*) > 1",
        "HAVING COUNT(*) > 2",
        "rlad/test_ledger.py",
    ),
    _mutant(
        "weights with a missing tensor are loaded",
        "actors/engines/vllm_engine/loaded_model.py",
        "if shapes != checkpoint:",
        "if shapes.keys() - checkpoint.keys():",
        "actors/engines/vllm_engine/test_loaded_model.py",
    ),
    _mutant(
        "damaged files are read",
        "rlad/integrity/manifest.py",
        "if digest != expected[name]:",
        "if not digest:",
        "rlad/integrity/test_manifest.py",
    ),
)


def examine(mutant: Mutant, copy: Path) -> Outcome:
    """Run the tests of a mutant in a copy of the repository, which is restored afterwards.

    Raises:
        ValueError: The correct text does not occur exactly once.
        RuntimeError: The tests did not run.
    """
    path, began = copy / mutant.file, time.monotonic()
    correct = path.read_text(encoding="utf-8")
    if correct.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: expected {mutant.old!r} once in {mutant.file}")
    path.write_text(correct.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        status, output = run_tests([mutant.tests], copy)
    finally:
        path.write_text(correct, encoding="utf-8")
    if status not in (0, 1):  # neither all passed nor one failed
        raise RuntimeError(f"{mutant.name}: the tests did not run (status {status}): {output[-2000:]}")
    failed = [line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")]
    killed_by = failed[0].rpartition("::")[2] if failed and status else None
    return Outcome(name=mutant.name, killed_by=killed_by, elapsed_s=round(time.monotonic() - began, 1))


def run_tests(tests: list[str], copy: Path) -> tuple[int, str]:
    """Run tests in a copy of the repository up to the first failure. Return pytest's exit status and output."""
    result = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def copy_of_repository(folder: Path) -> Path:
    """Copy the code and its tests into a folder."""
    for name in _COPIED:
        shutil.copytree(_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "pyproject.toml", folder)
    return folder


def main(json_path: JsonPath = None) -> None:
    """Run the tests of every mutant, and exit with 1 if the tests of one pass, or if they fail without a mutant."""
    console = Console()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary:
        copy = copy_of_repository(Path(temporary))
        status, output = run_tests(sorted({mutant.tests for mutant in MUTANTS}), copy)
        if status:
            raise RuntimeError(f"the tests fail without a mutant: {output[-2000:]}")
        for mutant in MUTANTS:
            outcomes.append(examine(mutant, copy))
            console.print(outcomes[-1], highlight=False)
    table = Table("mutant", "killed by")
    for outcome in outcomes:
        table.add_row(outcome.name, outcome.killed_by or "[red]SURVIVED[/]")
    console.print(table)
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    raise typer.Exit(0 if all(outcome.killed_by for outcome in outcomes) else 1)


if __name__ == "__main__":
    typer.run(main)
