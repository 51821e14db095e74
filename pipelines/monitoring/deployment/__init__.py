"""Files for Prometheus and Grafana in `deploy/monitoring/`, generated from the table of metrics."""
