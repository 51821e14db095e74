"""Hub data sets: read at a pinned commit without executing code, from the cache offline, refused with the remedy."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlad.config import HubPrompts
from tests.hub_stand_in import HubStandIn

pytest.importorskip("datasets", reason="the extra `hub` (datasets) is not installed")

ONE, TWO = ({"question": f"{n}+{n}?", "answer": f"so\n#### {2 * n}"} for n in (1, 2))
CARD = """---
configs:
- config_name: main
  data_files: [{split: train, path: main/train.parquet}, {split: test, path: main/test.parquet}]
- config_name: other
  data_files: other/*.parquet
---
"""
# huggingface_hub reads its variables at import, so each hub needs its own process.
PROGRAM = """
import json, sys
from rlad.config import HubPrompts
from rlad.data.prompt_files import read_prompts
from rlad.errors import RladError
for settings in json.loads(sys.argv[1]):
    try:
        reading = read_prompts(HubPrompts(**settings))
        found = [[record.answer for record in reading.records], *reading.versions.values()]
        found += [reading.files[0].layout, str(reading.locations[0])]
    except RladError as error:
        found = str(error)
    print("found:" + json.dumps(found))
"""
GSM = {"dataset": "team/gsm", "config": "main"}


def parquet(*rows: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def files(*train: dict[str, Any]) -> dict[str, bytes]:
    return {
        "README.md": CARD.encode(),
        "main/train.parquet": parquet(*train),
        "main/test.parquet": parquet(ONE),
        "other/train.parquet": parquet(TWO),
    }


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


def read(hub: HubStandIn, home: Path, *settings: dict[str, Any], **environment: str) -> list[Any]:
    """Read data sets in a process that uses this hub; return what was found, or the message of the error, of each."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        env=os.environ | hub.environment(home) | environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=home,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line[6:]) for line in process.stdout.splitlines() if line.startswith("found:")]


def test_splits_and_revisions_are_read_online_and_offline(hub: HubStandIn, tmp_path: Path) -> None:
    before = hub.add_dataset("team/gsm", files(ONE, TWO))
    hub.add_dataset("team/gsm", files(ONE, TWO), branch="v1")
    (tmp_path / "team/gsm").mkdir(parents=True)  # a local folder of the same name is not the data set
    (tmp_path / "team/gsm/rows.jsonl").write_text('{"question": "local", "answer": "9"}\n')
    first, test, some = read(hub, tmp_path, GSM, {**GSM, "split": "test"}, {**GSM, "split": "train[:1]"})
    row = "hub data set team/gsm, config main, split {}, row 1"
    assert first == [["2", "4"], before, "GSM8K", row.format("train")]
    assert test == [["2"], before, "GSM8K", row.format("test")]
    assert some[0] == ["2"]
    after = hub.add_dataset("team/gsm", files(TWO))
    hub.add_dataset("team/restricted", files(ONE), token="secret", gated=True)
    moved, tagged, pinned, allowed = read(
        hub,
        tmp_path,
        GSM,
        {**GSM, "revision": "v1"},
        {**GSM, "revision": before},
        {**GSM, "dataset": "team/restricted"},
        HF_TOKEN="secret",
    )
    assert allowed[0] == ["2"]
    assert (moved[:2], tagged[:2], pinned[:2]) == ([["4"], after], [["2", "4"], before], [["2", "4"], before])
    newest, pinned, lost, absent = read(
        hub,
        tmp_path,
        GSM,
        {**GSM, "revision": before},
        {**GSM, "revision": "0" * 40},
        {"dataset": "team/absent"},
        HF_HUB_OFFLINE="1",
    )
    assert (newest[:2], pinned[:2]) == ([["4"], after], [["2", "4"], before])
    assert f"the cache holds commit {after}, not {'0' * 40}, and the hub cannot be reached" in lost
    assert "the hub cannot be reached and the data set is not in the cache; check the network, HF_ENDPOINT" in absent


def test_refusals_name_the_remedy_and_code_is_not_executed(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_dataset("team/gsm", files(ONE))
    proof = tmp_path / "executed"
    hub.add_dataset("team/script", {"README.md": b"x", "script.py": f"open({str(proof)!r}, 'w')".encode()})
    hub.add_dataset("team/gated", files(ONE), token="secret", gated=True)
    hub.add_dataset("team/private", files(ONE), token="secret")
    cases = [
        ({"dataset": "team/gsm"}, "name one of its configurations with `config`"),
        ({"dataset": "team/gsm", "config": "none"}, "with `config` (BuilderConfig 'none' not found. Available: ['main"),
        (
            {**GSM, "split": "dev"},
            'name one of its splits with `split` (Unknown split "dev". Should be one of [\'train',
        ),
        ({**GSM, "revision": "v9"}, "it has no revision 'v9'; give a branch, a tag or a commit"),
        ({"dataset": "team/script"}, "it is loaded by code of its own, which is not executed; use its parquet files"),
        ({"dataset": "team/gated"}, "access is restricted; accept its conditions on the hub, and set HF_TOKEN"),
        ({"dataset": "team/private"}, "it does not exist or is private; check the name, and set HF_TOKEN"),
    ]
    found = read(hub, tmp_path, *(settings for settings, _ in cases))
    for (settings, complaint), message in zip(cases, found, strict=True):
        assert complaint in message
        assert str(message).startswith(f"hub data set {settings['dataset']}")
    assert not proof.exists()


def test_names_that_are_paths_or_urls_are_refused() -> None:
    for name in ("../data", "/data", "a/b/c", "hf://x", "", "a b"):
        with pytest.raises(ValueError, match="dataset"):
            HubPrompts(dataset=name)
