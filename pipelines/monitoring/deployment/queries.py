"""Names of metrics in queries. Each is checked against the table, or is one of Ray's or vLLM's own."""

from __future__ import annotations

from rlad.monitoring.table import metric

RAY_METRICS = frozenset(
    {
        "ray_node_cpu_utilization",
        "ray_node_gpus_utilization",
        "ray_node_mem_total",
        "ray_node_mem_used",
        "ray_serve_num_ongoing_requests_at_replicas",
        "ray_serve_replica_processing_queries",
        "ray_serve_replica_utilization_percent",
        "ray_vllm_e2e_request_latency_seconds",
        "ray_vllm_kv_cache_usage_perc",
        "ray_vllm_num_requests_running",
        "ray_vllm_num_requests_waiting",
    }
)
"""Metrics of Ray itself, and of vLLM through Ray, that dashboards and alerts use."""


def name(metric_name: str) -> str:
    """Return the name of a metric at its endpoint.

    Args:
        metric_name: Name in the table, or of a metric of Ray or vLLM with Ray's prefix.

    Raises:
        KeyError: Neither the table nor `RAY_METRICS` has it.
    """
    return metric_name if metric_name in RAY_METRICS else metric(metric_name).exported_name
