"""Other gateways, each in an environment of its own, measured beside ours in the same run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from loadtests.bench.processes import BenchError, Server, free_port, serve

LITELLM = "litellm[proxy]==1.106.0"


def _environment(home: Path, requirement: str) -> Path:
    """A virtual environment with `requirement` in it, made once. Raises `BenchError` when it can't be."""
    python = home / "bin" / "python"
    done = home / "installed"
    if done.exists() and done.read_text() == requirement:
        return python
    uv = Path(sys.executable).with_name("uv")
    for argv in (
        [str(uv), "venv", "-q", "--clear", "--python", sys.executable, str(home)],
        [str(uv), "pip", "install", "-q", "--python", str(python), requirement],
    ):
        made = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        if made.returncode:
            raise BenchError(f"could not install {requirement}: {made.stderr.strip()[-800:]}")
    done.write_text(requirement)
    return python


@contextlib.contextmanager
def litellm(home: Path, upstream: str) -> Iterator[Server]:
    """LiteLLM's proxy with the same pattern guards, pinned like ours."""
    python = _environment(home / "litellm", LITELLM)
    port = free_port()
    config = Path(__file__).with_name("litellm.yaml")
    env = {
        "BENCH_UPSTREAM": f"{upstream}/v1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": MASTER_KEY,
    }
    argv = [
        *(str(python.with_name("litellm")), "--config", str(config)),
        *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
    ]
    with serve(argv, port=port, ready="/health/liveliness", log=home / "litellm.log", env=env) as server:
        yield server


MASTER_KEY = "sk-bench-loopback-only-0f6b1c"
