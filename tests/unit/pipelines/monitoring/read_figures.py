"""Print what a tracker has of the stand-in run as JSON: {name: {step: last value}}. Usage: read_figures.py NAME RUN"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

RUN_ID = "stand-in-1a2b3c4d"
Point = tuple[str, int, float]


def tensorboard(run: Path) -> Iterator[Point]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for name in board.Tags()["scalars"]:
        for event in board.Scalars(name):
            yield name, event.step, event.value


def mlflow(run: Path) -> Iterator[Point]:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient((run / "tracking" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("rlad")
    (found,) = client.search_runs([experiment.experiment_id])  # one run, although there were two drivers
    assert found.info.status == "FINISHED"
    assert found.data.params["training.steps"] == "6"
    for name in found.data.metrics:
        for metric in sorted(client.get_metric_history(found.info.run_id, name), key=lambda each: each.timestamp):
            yield name, metric.step, metric.value


def trackio(run: Path) -> Iterator[Point]:
    os.environ["TRACKIO_DIR"] = str(run / "tracking" / "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("rlad") == [RUN_ID]
    for row in SQLiteStorage.get_logs("rlad", RUN_ID):
        step = row.pop("step")
        for name, value in row.items():
            if "/" in name:
                yield name, step, value


def wandb(run: Path) -> Iterator[Point]:
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((run / "tracking" / "wandb").glob(f"offline-run-*/run-{RUN_ID}.wandb"))
    assert len(files) == 2  # one a driver, under one id
    for file in files:
        for content in _records(file.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("history"):
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                for name, value in items.items():
                    if name != "trained_steps" and not name.startswith("_"):
                        yield name, items["trained_steps"], value


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B file: a header of 7 bytes, and LevelDB's log format in blocks of 32 KiB."""
    position, block, pending = 7, 32768, b""
    while position + 7 <= len(content):
        if block - position % block < 7:
            position += block - position % block
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]  # 1 whole, 2 first, 3 middle, 4 last
        part = content[position + 7 : position + 7 + length]
        position += 7 + length
        pending = part if kind in (1, 2) else pending + part
        if kind in (1, 4):
            yield pending


if __name__ == "__main__":
    figures: dict[str, dict[int, float]] = defaultdict(dict)
    for name, step, value in globals()[sys.argv[1]](Path(sys.argv[2])):
        figures[name][step] = value
    print(json.dumps(figures))
