"""Grafana dashboards and Prometheus rules. `python -m monitoring` writes `grafana/dashboards/*.json` anew."""
