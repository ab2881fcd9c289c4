"""How vLLM is started: its command line and environment, for a CPU and for a GPU host."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

SERVER = "vllm.entrypoints.openai.api_server"
_CPU_MAIN = Path(__file__).with_name("vllm_main.py")
Device = Literal["auto", "cpu", "gpu"]

# Measured on two cores: with these vLLM starts in half the time and keeps its throughput under load,
# where its defaults (a process of its own for the engine, compilation, a thread per core) collapse.
_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}
# What policies' constraints are applied by; a request without any costs it a look at an empty table.
_LOGITS_PROCESSOR = "service.alignment.vllm_constraints:Constraints"
_DOOR = "service.vllm_door.Door"
KV_CACHE_BYTES = 128 << 20
# Whole prompts only: where a prompt is cut over two steps, vLLM 0.32 turns back the random numbers of a
# request with a seed, which torch can't do on a CPU, and the engine dies with all that it was writing.
_CPU_ARGUMENTS = (
    *("--distributed-executor-backend", "uni", "--enforce-eager"),
    "--no-enable-chunked-prefill",
)

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "INFO",  # DEBUG would log requests
    "VLLM_LOGGING_COLOR": "0",
    "VLLM_CONFIGURE_LOGGING": "1",
    "PYTHONUNBUFFERED": "1",
    # The module is named deprecated, the command that replaces it is not installed by every build.
    "PYTHONWARNINGS": "ignore::DeprecationWarning",
}
# Unset, not empty: vLLM reads an empty cache size as zero, and the others would undo what is set here.
_DROPPED = (
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_LOGGING_CONFIG_PATH",
    "VLLM_LOGGING_PREFIX",
    "VLLM_LOGGING_STREAM",
)

# Set before exec, so that it holds from vLLM's first instruction: Linux ends the process when the thread
# that started it ends, be it by kill -9. The check after it closes the gap before it was set.
_DEATH_PACT = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """LoRA adapters of one server: how many can answer at the same time, and of which rank at most."""

    count: int = 4
    rank: int = 64


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """One managed vLLM server.

    `model` is a checkpoint's folder, `served_name` what requests call it. `kv_cache_bytes` is used on CPU
    hosts; on a GPU vLLM takes the share of memory it always takes. `adapters`: it takes LoRA adapters while
    it runs. `reloadable`: it can read other weights of the same shapes in place, which takes its development
    mode. `arguments` go to vLLM as they are, and win over those chosen here.
    """

    model: Path
    served_name: str
    device: Device = "auto"
    kv_cache_bytes: int = KV_CACHE_BYTES
    max_model_len: int | None = None
    adapters: AdapterLimits | None = None
    reloadable: bool = False
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float = 600.0  # a large model on a cold disk loads for minutes
    health_seconds: float = 5.0  # between two looks at a running server
    hung_seconds: float = 60.0  # without an answer to any of them: restarted
    backoff_seconds: float = 1.0  # before the first restart, doubled for each further one
    max_backoff_seconds: float = 60.0
    stable_seconds: float = 120.0  # ready for so long: the back-off begins anew
    max_restarts: int = 10  # in a row, without being stable in between
    term_seconds: float = 15.0  # between SIGTERM and SIGKILL

    def __post_init__(self) -> None:
        if not (self.model / "config.json").is_file():
            raise ValueError(
                f"no checkpoint at {str(self.model)!r}: it has no config.json; give the folder that holds "
                f"the model's config.json and weights"
            )
        if not self.served_name:
            raise ValueError("a managed vLLM needs a name to serve its model under")


# vLLM runs its engine in a process of its own, which outlives a server that was killed and keeps the memory.
# This one outlives the gateway instead: it waits for the gateway's end, which closes its standard input
# (unless a forked worker holds that open) and changes its parent, and ends the server's process group.
_WARDEN = (
    "import contextlib, os, select, signal, sys\n"
    "gateway, group = int(sys.argv[1]), int(sys.argv[2])\n"
    "while os.getppid() == gateway and not select.select([0], [], [], 1)[0]:\n"
    "    pass\n"
    "with contextlib.suppress(ProcessLookupError):\n"
    "    os.killpg(group, signal.SIGKILL)\n"
)


def on_cpu(device: Device) -> bool:
    """Whether vLLM runs on the CPU: as said, or by which build of it is installed."""
    if device != "auto":
        return device == "cpu"
    installed = {dist.name.lower() for dist in importlib.metadata.distributions(name="vllm-cpu")}
    return "vllm-cpu" in installed or not os.path.exists("/dev/nvidiactl")


def command(config: VllmConfig, port: int, adapters: Mapping[str, Path] = MappingProxyType({})) -> list[str]:
    """The argument vector that becomes vLLM by exec, bound to this process's life on Linux.

    adapters: those it starts with, by the name that requests call them.
    """
    # -P: or this folder's modules would stand before the libraries' of the same name.
    module = ("-P", str(_CPU_MAIN)) if on_cpu(config.device) else ("-m", SERVER)
    vllm = [
        sys.executable,
        *module,
        "--model",
        str(config.model),
        "--served-model-name",
        config.served_name,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-uvicorn-access-log",
        "--logits-processors",
        _LOGITS_PROCESSOR,
        "--middleware",
        _DOOR,
    ]
    if on_cpu(config.device):
        vllm += [*_CPU_ARGUMENTS, "--kv-cache-memory-bytes", str(config.kv_cache_bytes)]
    if config.max_model_len is not None:
        vllm += ["--max-model-len", str(config.max_model_len)]
    if config.adapters is not None:
        count, rank = str(config.adapters.count), str(config.adapters.rank)
        vllm += ["--enable-lora", "--max-loras", count, "--max-cpu-loras", count, "--max-lora-rank", rank]
    if adapters:
        vllm += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    vllm += config.arguments
    if not sys.platform.startswith("linux"):
        return vllm
    return [sys.executable, "-I", "-S", "-c", _DEATH_PACT, str(os.getpid()), *vllm]


def warden(group: int) -> list[str]:
    """The command that ends process group `group` when this process ends; its standard input is a pipe."""
    return [sys.executable, "-I", "-S", "-c", _WARDEN, str(os.getpid()), str(group)]


def environment(config: VllmConfig, api_key: str) -> dict[str, str]:
    """The child's environment: this process's, with what vLLM needs and without this process's secrets."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("KEEL_") and k not in _DROPPED}
    chosen = {**_ENVIRONMENT, **(_CPU_ENVIRONMENT if on_cpu(config.device) else {})}
    if config.adapters is not None:
        chosen["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if config.reloadable:
        chosen["VLLM_SERVER_DEV_MODE"] = "1"
    # In the environment, not the arguments: every user of the machine can read those.
    return {**inherited, **chosen, **config.environment, "VLLM_API_KEY": api_key}
