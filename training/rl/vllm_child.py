"""Runs a command in a process group of its own and ends the whole group when its parent is gone.

    python vllm_child.py PARENT_PID COMMAND …

vLLM's engine is a process of its own that outlives a server killed with kill -9, and would keep the memory.
This file is run by its path and needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

_LOOK_SECONDS = 0.2
_TERM_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    parent, command = int(arguments[0]), arguments[1:]
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, ask)
    child = subprocess.Popen(command, start_new_session=True)  # noqa: S603  the trainer's own command
    try:
        while child.poll() is None and not asked and os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
    finally:
        _end(child)
    return child.returncode or 0


def _end(child: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _TERM_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
