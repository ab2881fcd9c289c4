"""What engines and guard workers report, as metrics and as lines of the log."""

from __future__ import annotations

from structlog.testing import capture_logs

from service.telemetry.metrics import Metrics
from service.telemetry.observers import RuntimeMetrics


def test_a_worker_that_ends_of_itself_is_counted_and_logged() -> None:
    metrics = Metrics()
    observer = RuntimeMetrics(metrics)
    with capture_logs() as lines:
        observer.on_worker("started", 7, "")
        observer.on_worker("retired", 7, "")
        observer.on_worker("died", 8, "killed by SIGKILL")
    assert lines == [
        {
            "event": "guard_worker",
            "log_level": "error",
            "what": "died",
            "pid": 8,
            "detail": "killed by SIGKILL",
        }
    ]
    for event in ("started", "retired", "died"):
        assert metrics.registry.get_sample_value("keel_guard_worker_events_total", {"event": event}) == 1
