"""A vLLM server as a child of the trainer, on a free loopback port, behind a key made for it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from training.errors import TrainingError

_SERVER = "vllm.entrypoints.openai.api_server"
_CHILD = Path(__file__).with_name("vllm_child.py")
_NAME = "policy"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 30.0

# Measured on two cores: vLLM's own choices (compilation, a thread per core) start twice as slowly there.
_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}
_CPU_ARGUMENTS = (
    *("--distributed-executor-backend", "uni", "--enforce-eager"),
    *("--kv-cache-memory-bytes", str(128 << 20)),
)
_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # /pause, /collective_rpc, /reset_prefix_cache, /resume
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_COLOR": "0",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore::DeprecationWarning",
}


class ManagedServer:
    """Started when it is made; `wait_ready` before use, `stop` afterwards. It dies with this process."""

    def __init__(self, model: Path, arguments: Sequence[str], log: Path) -> None:
        self.api_key = secrets.token_urlsafe(32)
        self._log = log
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", _SERVER, "--model", str(model), "--served-model-name", _NAME),
            *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"),
            # Not the folder's own defaults (repetition penalty, top-p): the policy is sampled as it is.
            *("--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
            *(_CPU_ARGUMENTS if _on_cpu() else ()),
            *arguments,
        ]
        # Unset, not empty: vLLM would read an empty size as zero.
        inherited = {k: v for k, v in os.environ.items() if k != "VLLM_CPU_KVCACHE_SPACE"}
        chosen = {**_ENVIRONMENT, **(_CPU_ENVIRONMENT if _on_cpu() else {}), "VLLM_API_KEY": self.api_key}
        with log.open("wb") as out:
            self.process = subprocess.Popen(  # noqa: S603  the command above
                [sys.executable, "-I", str(_CHILD), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**inherited, **chosen},
            )

    def wait_ready(self, seconds: float) -> None:
        """Return once it answers; raises TrainingError with the end of its log when it doesn't."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise TrainingError(f"vLLM ended while it started:\n{self.tail()}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2, trust_env=False).status_code == 200:
                    return
            time.sleep(_POLL_SECONDS)
        self.stop()
        raise TrainingError(f"vLLM was not ready after {seconds:.0f} s:\n{self.tail()}")

    def stop(self) -> None:
        """End it and its engine; returns when they are gone."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tail(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def _on_cpu() -> bool:
    return "vllm-cpu" in {d.name.lower() for d in importlib.metadata.distributions(name="vllm-cpu")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
