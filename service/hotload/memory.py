"""Whether a second model server fits beside the first, as far as the machine can tell."""

from __future__ import annotations

import contextlib
from pathlib import Path

from policies.registry import ResolvedCheckpoint

RUNTIME_BYTES = 1_500 << 20
"""What vLLM itself takes on a CPU host, before weights and cache: Python, torch and two processes."""
_CGROUP = Path("/sys/fs/cgroup")


def available(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can still be taken, by the machine's word and the container's; None where neither says."""
    free: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(max(0, limit - used))
    return min(free, default=None)


def needed(checkpoint: ResolvedCheckpoint, cache_bytes: int) -> int:
    """Bytes of host memory that a vLLM for this checkpoint takes on a CPU."""
    weights = sum(file.bytes for file in checkpoint.manifest.files if file.role == "weights")
    return weights + cache_bytes + RUNTIME_BYTES
