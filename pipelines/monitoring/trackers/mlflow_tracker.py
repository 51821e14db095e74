"""MLflow, on a tracking server or in a file store."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.monitoring.trackers.tracker import TrackedRun
from rlad.config.monitoring.trackers import MlflowTracker

_TAG = "rlad.run_id"
# Limits of MLflow's API: parameters in one call, and characters of a value.
_PARAMETERS, _PARAMETER_CHARACTERS = 100, 500
# Everything that MLflow does not accept in a name.
_OTHER = re.compile(r"[^\w\-. :/]")


class Mlflow:
    """Logs to the MLflow run that has the id of the rlad run as a tag."""

    def __init__(self, config: MlflowTracker, run: TrackedRun) -> None:
        uri = config.tracking_uri
        if uri is None:
            uri = (run.folder / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(config.experiment)
        if experiment is None:
            experiment_id = self._client.create_experiment(config.experiment)
        else:
            experiment_id = experiment.experiment_id
        found = self._client.search_runs([experiment_id], f"tags.`{_TAG}` = '{run.run_id}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            created = self._client.create_run(experiment_id, run_name=run.run_id, tags={_TAG: run.run_id})
            self._run_id = created.info.run_id
            self._log_parameters(run.config)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(_OTHER.sub("_", name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics)

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run_id)

    def _log_parameters(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [
            Param(_OTHER.sub("_", name), str(value)[:_PARAMETER_CHARACTERS]) for name, value in _flat("", config)
        ]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._run_id, params=parameters[start : start + _PARAMETERS])


def _flat(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value
