"""What all tests share: hypothesis profiles, groups for those that share a vLLM or a browser, servers."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The real PostgreSQL, and the real vLLM of the tests marked `vllm`.
pytest_plugins = [
    "tests.fixtures_postgres",
    *(["tests.fixtures_vllm"] if importlib.util.find_spec("tests.fixtures_vllm") else []),
]

# Derandomised: a red build names a fault of the change at hand, not of the day's seed.
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", parent=settings.get_profile("ci"), derandomize=False, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# System programs that some tests start, and the Debian package each comes from.
SERVERS = {
    "redis-server": "redis-server",
    "nginx": "nginx-light",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "initdb": "postgresql",
    "chromium": "chromium",
    "wrk": "wrk",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.xdist_group("vllm"))
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("chromium"))
        missing = _missing_servers(item)
        if missing:
            packages = " ".join(sorted({SERVERS.get(name, name) for name in missing}))
            reason = f"needs {', '.join(missing)}: apt-get install {packages}"
            item.add_marker(pytest.mark.skip(reason=reason))


def _missing_servers(item: pytest.Item) -> list[str]:
    wanted = {str(name) for marker in item.iter_markers("servers") for name in marker.args}
    return sorted(name for name in wanted if not _program(name))


def _program(name: str) -> str | None:
    """Debian keeps servers in sbin, which is on root's PATH only, and PostgreSQL's in a folder a version."""
    postgres = sorted(str(folder) for folder in Path("/usr/lib/postgresql").glob("*/bin"))
    return shutil.which(name) or shutil.which(
        name, path=":".join(["/usr/sbin", "/usr/local/sbin", *postgres])
    )
