"""Models of the hub: real requests of huggingface_hub, in a process of their own, to a stand-in on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_stand_in import HubStandIn

ROOT = Path(__file__).parents[4]
WEIGHTS = bytes(range(256)) * 64
MODEL = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "README.md": b"not needed",
    "pytorch_model.bin": b"not needed",
    "original/model.safetensors": b"not needed",
    "consolidated.safetensors": b"not needed",
}
NEEDED = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
# Fetches one model for each line of its input: [reference, whether weights are needed].
CHILD = """
import json, sys
from rlad.errors import RladError
from rlad.models.locations import fetch_model, pin_model
for line in sys.stdin:
    reference, weights = json.loads(line)
    progress = []
    try:
        pinned = pin_model(reference)
        directory = fetch_model(pinned.location, weights=weights, on_bytes=lambda *seen: progress.append(seen))
    except RladError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        files = sorted(path.name for path in directory.iterdir())
        told = {"directory": str(directory), "location": pinned.location, "version": pinned.version}
        print(json.dumps({**told, "files": files, "progress": progress[-1:]}))
"""


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        yield stand_in


def start(environment: dict[str, str]) -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**variables, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str], *references: str, weights: bool = True) -> list[dict[str, Any]]:
    lines = "".join(json.dumps([reference, weights]) + "\n" for reference in references)
    output, errors = child.communicate(lines, timeout=60)
    assert child.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def fetch(environment: dict[str, str], *references: str, weights: bool = True) -> list[dict[str, Any]]:
    return finish(start(environment), *references, weights=weights)


def test_only_needed_files_of_the_revision_are_downloaded_and_only_once(hub: HubStandIn, tmp_path: Path) -> None:
    old = hub.add_model("team/tiny", MODEL)
    new = hub.add_model("team/tiny", {**MODEL, "config.json": b'{"model_type": "llama"}'})
    environment = hub.environment(tmp_path)
    (small,) = fetch(environment, "team/tiny", weights=False)
    assert "model.safetensors" not in small["files"]
    first, again, pinned = fetch(environment, "team/tiny", "team/tiny@main", f"team/tiny@{old}")
    assert (first["version"], first["files"]) == (new, NEEDED)
    assert first["progress"] == [[len(WEIGHTS), len(WEIGHTS)]]  # the other files were there
    assert again["directory"] == first["directory"] == small["directory"]
    assert pinned["location"] == f"team/tiny@{old}"
    assert (Path(pinned["directory"]) / "config.json").read_bytes() == MODEL["config.json"]
    assert sorted(hub.downloads()) == NEEDED
    weights = [each for each in hub.requests if each.method == "GET" and each.path.endswith("model.safetensors")]
    assert len(weights) == 1  # both commits have the same


def test_a_location_names_the_commit_of_its_resolution_after_the_branch_has_moved(
    hub: HubStandIn, tmp_path: Path
) -> None:
    hub.add_model("team/tiny", MODEL)
    (before,) = fetch(hub.environment(tmp_path / "driver"), "team/tiny", weights=False)
    hub.add_model("team/tiny", {**MODEL, "model.safetensors": b"newer"})
    (on_node,) = fetch(hub.environment(tmp_path / "node"), before["location"])
    assert on_node["version"] == before["version"]
    assert (Path(on_node["directory"]) / "model.safetensors").read_bytes() == WEIGHTS


def test_processes_of_one_node_download_a_model_once(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_model("team/tiny", MODEL)
    children = [start(hub.environment(tmp_path)) for _ in range(2)]
    results = [finish(child, "team/tiny")[0] for child in children]
    assert results[0]["directory"] == results[1]["directory"]
    contents = [each.path for each in hub.requests if each.method == "GET" and "/resolve/" in each.path]
    assert len(contents) == len(set(contents)) == len(NEEDED)


def test_missing_and_private_models_are_refused_with_the_remedy(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_model("team/tiny", MODEL)
    hub.add_model("team/gated", MODEL, token="hf_secret", gated=True)
    hub.add_model("team/private", MODEL, token="hf_secret")
    hub.add_model("team/pickled", {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"pickle"})
    cases = {
        "team/none": ("PlanError", "no model 'team/none': there is no such directory"),
        "team/private": ("PlanError", "or it is private and this machine has no token (HF_TOKEN)"),
        "team/tiny@v9": ("PlanError", "model team/tiny has no revision 'v9'"),
        f"team/tiny@{'0' * 40}": ("PlanError", "has no revision '0000"),
        "team/gated": ("AccessError", "is gated, and this machine has no token: accept its terms on"),
        "team/pickled": ("PlanError", "only safetensors weights are read"),
    }
    for reference, (error, message), result in zip(
        cases, cases.values(), fetch(hub.environment(tmp_path), *cases), strict=True
    ):
        assert result.get("error") == error, (reference, result)
        assert message in result["message"]
    wrong = fetch(hub.environment(tmp_path, token="hf_wrong"), "team/gated")[0]
    assert "the token of this machine may not read it" in wrong["message"]
    assert "HF_TOKEN" in wrong["message"]
    assert "hf_wrong" not in wrong["message"]


def test_the_token_opens_a_gated_model_and_is_in_no_file(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_model("team/gated", MODEL, token="hf_secret", gated=True)
    (result,) = fetch(hub.environment(tmp_path, token="hf_secret"), "team/gated")
    assert result["files"] == NEEDED
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_a_download_that_breaks_off_continues_where_it_ended(hub: HubStandIn, tmp_path: Path) -> None:
    weights = bytes(11 << 20)
    hub.add_model("team/tiny", {**MODEL, "model.safetensors": weights})
    hub.break_download("model.safetensors", after_bytes=len(weights) - 1000)
    (result,) = fetch(hub.environment(tmp_path), "team/tiny")
    assert (Path(result["directory"]) / "model.safetensors").read_bytes() == weights
    ranges = [each.range for each in hub.requests if each.method == "GET" and each.path.endswith(".safetensors")]
    assert ranges == [None, f"bytes={10 << 20}-"]  # huggingface_hub writes pieces of 10 MiB


def test_without_network_a_filled_cache_suffices_and_an_empty_one_is_named(tmp_path: Path) -> None:
    with HubStandIn() as hub:
        commit = hub.add_model("team/tiny", MODEL)
        environment = hub.environment(tmp_path / "cache")
        fetch(environment, "team/tiny")
    for offline in ("0", "1"):
        cached, absent = fetch({**environment, "HF_HUB_OFFLINE": offline}, "team/tiny", "team/other")
        assert (cached["version"], cached["files"]) == (commit, NEEDED)
        assert absent["error"] == "ModelUnreachableError"
        reason = (
            "HF_HUB_OFFLINE forbids" if offline == "1" else f"the download from {environment['HF_ENDPOINT']} failed"
        )
        assert reason in absent["message"]
        assert str(tmp_path / "cache" / "hub") in absent["message"]


def test_a_cache_with_part_of_a_model_is_not_taken_for_the_model(tmp_path: Path) -> None:
    with HubStandIn() as hub:
        hub.add_model("team/tiny", MODEL)
        environment = hub.environment(tmp_path)
        fetch(environment, "team/tiny", weights=False)
    (result,) = fetch({**environment, "HF_HUB_OFFLINE": "1"}, "team/tiny")
    assert result["error"] == "ModelUnreachableError"


def test_a_directory_comes_before_a_hub_model_of_the_same_name(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_model("team/tiny", MODEL)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "team/tiny").mkdir(parents=True, exist_ok=True)
        (tmp_path / "team/tiny" / name).write_bytes(MODEL[name])
    program = "from rlad.models.locations import pin_model; print(pin_model('team/tiny').location)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | hub.environment(tmp_path / "cache")
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == str(tmp_path / "team/tiny")
    assert not hub.requests
