"""A guard worker: a process that holds models and answers batches, one at a time.

Started by `guardrails.worker_process` as `python -P -m guardrails.worker FD PARENT`, with its end of a
socket pair as descriptor FD. Messages, from the gateway and to it:

    ("load", [ServableSpec, …])         ("loading", name) and ("loaded", name, seconds) for each,
                                        then ("ready", {name: description})
                                        or ("load_failed", name, detail), and the worker ends
    ("run", name, [pickled payload, …]) ("done", [(True, result) | (False, detail), …])
    ("unload", [name, …])               nothing

It ends when the gateway does: the socket's end is seen whenever it waits, and on Linux the kernel ends it
even while it computes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from guardrails import wire
from guardrails.servable import Servable, ServableSpec

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with(parent: int) -> None:
    """Have the kernel end this process when `parent` ends; at once if it already has."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def make(spec: ServableSpec) -> Servable:
    """Call the factory that `spec` names with its configuration."""
    module, _, function = spec.factory.partition(":")
    factory: Callable[..., Servable] = getattr(importlib.import_module(module), function)
    return factory(**spec.config)


def where(error: BaseException) -> str:
    """The error's type and line, and nothing of its message, which may quote the examined text."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    last = frames[-1]
    return f"{type(error).__name__} at {os.path.basename(last.filename)}:{last.lineno}"


def answer(servable: Servable, payloads: Sequence[bytes]) -> list[tuple[bool, Any]]:
    """One (ok, result or reason) per payload. One bad payload costs its own job, not its batch."""
    batch: list[Any] = [wire.load(payload) for payload in payloads]
    try:
        results = servable.predict(batch)
        if len(results) != len(batch):
            raise ValueError(f"{len(results)} results for {len(batch)} payloads")
        return [(True, result) for result in results]
    except Exception as error:
        if len(batch) == 1:
            return [(False, where(error))]
    return [outcome for payload in payloads for outcome in answer(servable, [payload])]


def reply(outcomes: list[tuple[bool, Any]]) -> bytes:
    """The outcomes as they travel; a result that can't be pickled costs its own job, not its batch."""
    try:
        return wire.frame(("done", outcomes))
    except Exception:
        return wire.frame(("done", [_travels(outcome) for outcome in outcomes]))


def _travels(outcome: tuple[bool, Any]) -> tuple[bool, Any]:
    try:
        wire.dump(outcome)
    except Exception as error:
        return False, where(error)
    return outcome


def load(sock: socket.socket, specs: Sequence[ServableSpec]) -> dict[str, Servable] | None:
    """Make every servable, telling the gateway of each; None when one can't be made."""
    servables: dict[str, Servable] = {}
    descriptions: dict[str, Any] = {}
    for spec in specs:
        began = time.monotonic()
        wire.send(sock, ("loading", spec.name))
        try:
            servables[spec.name] = servable = make(spec)
            descriptions[spec.name] = servable.describe() if hasattr(servable, "describe") else None
        except Exception as error:
            wire.send(sock, ("load_failed", spec.name, f"{type(error).__name__}: {error}"))
            return None
        wire.send(sock, ("loaded", spec.name, time.monotonic() - began))
    gc.collect()
    gc.freeze()
    wire.send(sock, ("ready", descriptions))
    return servables


def serve(sock: socket.socket) -> None:
    """Answer the gateway until it goes away."""
    servables: dict[str, Servable] = {}
    while True:
        kind, *arguments = wire.receive(sock)
        if kind == "run":
            name, payloads = arguments
            servable = servables.get(name)
            unloaded = [(False, "it was unloaded")] * len(payloads)
            outcomes = answer(servable, payloads) if servable is not None else unloaded
            sock.sendall(reply(outcomes))
        elif kind == "load":
            loaded = load(sock, arguments[0])
            if loaded is None:
                return
            servables = loaded
        elif kind == "unload":
            for name in arguments[0]:
                servables.pop(name, None)
            gc.unfreeze()
            gc.collect()
            gc.freeze()


def main(arguments: Sequence[str]) -> None:
    """Run one worker. SIGINT and SIGTERM are ignored: when to stop is the gateway's decision."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    descriptor, parent = (int(argument) for argument in arguments)
    die_with(parent)
    logging.basicConfig(level=logging.CRITICAL)  # libraries may quote the examined text in what they log
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(socket.socket(fileno=descriptor))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # native thread pools have been seen to hang an orderly interpreter exit


if __name__ == "__main__":
    main(sys.argv[1:])
