"""A gateway on a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from service.app import Gateway
from service.serve import listen, make_server
from service.settings import Settings


@contextlib.contextmanager
def threaded_gateway(folder: Path, policies: dict[str, str], **settings: Any) -> Iterator[str]:
    """Serve `policies` (name to YAML); gives the gateway's URL."""
    for name, text in policies.items():
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{text}")
    defaults: dict[str, Any] = {
        "port": 0,
        "policies": [folder],
        "shipped_policies": False,
        "default_policy": next(iter(policies)),
        "state_dir": folder / "state",
        "watch_policies": False,
        "drain_timeout_s": 1.0,
    }
    loaded = Settings.load(None, **{**defaults, **settings})
    listener = listen(loaded)
    up, stop = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    async def serve() -> None:
        gateway = Gateway(loaded, structlog.wrap_logger(structlog.testing.CapturingLogger()))
        server = make_server(gateway)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await gateway.start()
            up.set()
            await asyncio.to_thread(stop.wait)
        except BaseException as error:
            failure.append(error)
        finally:
            server.should_exit = True
            await serving
            await gateway.stop()
            up.set()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="gateway")
    thread.start()
    up.wait()
    try:
        if failure:
            raise failure[0]
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()
