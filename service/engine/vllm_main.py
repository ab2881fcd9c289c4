"""What the managed child runs on a CPU host: vLLM's API server, with its engine process forked.

vLLM's engine is a process of its own. On CPUs vLLM spawns it, so that it imports torch and vLLM a second
time, which is half of the time until a small model answers. Its reason is that the number of OpenMP threads
can't be changed after a fork; with one thread, which is what a managed child has, there is nothing to change.

This file is run by its path and imports nothing of Keel's. Where vLLM no longer has what it looks for, the
engine is started in vLLM's own way, only later.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import runpy
import sys
from multiprocessing.context import BaseContext

SERVER = "vllm.entrypoints.openai.api_server"


def _forked() -> BaseContext:
    return multiprocessing.get_context("fork")


def fork_the_engine() -> None:
    """Let vLLM's `get_mp_context`, wherever it has been imported to by now, give the fork context."""
    system = importlib.import_module("vllm.utils.system_utils")
    chosen_by_vllm = system.get_mp_context
    for module in list(sys.modules.values()):
        if getattr(module, "get_mp_context", None) is chosen_by_vllm:
            module.get_mp_context = _forked  # type: ignore[attr-defined]


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") == "1":
        with contextlib.suppress(ImportError, AttributeError):
            fork_the_engine()
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
