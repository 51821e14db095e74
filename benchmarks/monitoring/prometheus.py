"""A Prometheus with the project's scrape configuration and alert rules, for the duration of a block."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
SCRAPE_S = 2
_START_TIMEOUT_S, _REQUEST_TIMEOUT_S, _STOP_TIMEOUT_S = 60.0, 30.0, 20.0


class Prometheus:
    """Client of a Prometheus."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: Address, such as http://127.0.0.1:9090.
        """
        self._http = httpx.Client(base_url=url, timeout=_REQUEST_TIMEOUT_S)

    def is_ready(self) -> bool:
        """Return whether it answers queries."""
        try:
            return self._http.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def targets(self, *, start: float, end: float) -> dict[str, str]:
        """Return the scrape targets of a time range by job and address: `up` if a scrape succeeded, else `down`."""
        return {
            f"{each['metric']['job']} {each['metric']['instance']}": "up"
            if any(float(value) for _, value in each["values"])
            else "down"
            for each in self.query("up", start=start, end=end)
        }

    def names(self) -> set[str]:
        """Return the names of all metrics that it has stored."""
        return set(self._get("label/__name__/values"))

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire now."""
        return {each["labels"]["alertname"] for each in self._get("alerts")["alerts"] if each["state"] == "firing"}

    def query(self, expression: str, *, start: float, end: float) -> list[dict[str, Any]]:
        """Return the series of a query over a time range.

        Args:
            expression: Query.
            start: Begin, seconds since the epoch.
            end: End, seconds since the epoch.

        Returns:
            Series with `metric`, the labels, and `values`, pairs of a time and a number as text.
        """
        answer = self._get("query_range", query=expression, start=str(start), end=str(end), step=str(SCRAPE_S))
        return list(answer["result"])

    def _get(self, path: str, **parameters: str) -> Any:
        return self._http.get(f"/api/v1/{path}", params=parameters).raise_for_status().json()["data"]


def scrape_configuration(
    *, discovery: Path, schedules: int, teacher: str, teacher_port: int, token_file: Path
) -> dict[str, Any]:
    """Return the committed scrape configuration with the addresses of one site, and short intervals.

    Args:
        discovery: File with the endpoints of the Ray cluster.
        schedules: Port of the schedule daemon's metrics.
        teacher: Name of the teacher service.
        teacher_port: Port of its gateway.
        token_file: File with its bearer token.
    """
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    jobs: Mapping[str, dict[str, Any]] = {each["job_name"]: each for each in configuration["scrape_configs"]}
    # Ray asks for a minute between reads of this file.
    jobs["ray"]["file_sd_configs"] = [{"files": [str(discovery)], "refresh_interval": "1s"}]
    jobs["rlad-schedules"]["static_configs"] = [{"targets": [f"127.0.0.1:{schedules}"]}]
    jobs["rlad-teachers"] |= {
        "metrics_path": f"/{teacher}/metrics",
        "authorization": {"credentials_file": str(token_file)},
        "static_configs": [{"targets": [f"127.0.0.1:{teacher_port}"]}],
    }
    return dict(configuration)


@contextmanager
def prometheus(folder: Path, configuration: Mapping[str, Any], port: int) -> Iterator[Prometheus]:
    """Run Prometheus on loopback for the duration of the block.

    Args:
        folder: Folder for its configuration, its data and its log.
        configuration: Scrape configuration.
        port: Port.

    Raises:
        RuntimeError: It did not start.
    """
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(configuration)))
    (folder / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text())
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        client, deadline = Prometheus(f"http://127.0.0.1:{port}"), time.monotonic() + _START_TIMEOUT_S
        while not client.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prometheus did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield client
    finally:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)
