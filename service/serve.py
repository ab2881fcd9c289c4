"""`keel serve`: the HTTP server around the gateway, from the first line to the last.

The port opens at once, so that a load balancer sees an unready gateway and not a dead one; everything else
loads behind it. On SIGTERM readiness turns false, requests in flight finish within a limit, children stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Iterator

import uvicorn
from rich.console import Console

from policies.errors import PolicyError
from service.app import Gateway
from service.auth import KeyFile, KeyFileError
from service.protocol import BoundedProtocol
from service.settings import ConfigError, Settings
from service.telemetry import logs


class Server(uvicorn.Server):
    """uvicorn's server, without its hands on the process' signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def check_exposure(settings: Settings) -> None:
    """Raises `ConfigError` where anybody could call: an address beyond this machine, and no key."""
    if (
        settings.loopback
        or settings.api_keys
        or any(key.role == "api" for key in KeyFile(settings.key_file).load())
    ):
        return
    raise ConfigError(
        f"refusing to listen on {settings.host!r} without API keys: everyone who reaches it could use it.\n"
        "  Create a key with `keel keys create NAME`, or listen on 127.0.0.1 (the default)."
    )


def run(settings: Settings) -> int:
    """Serve until a signal; the process' exit status."""
    check_exposure(settings)
    console = Console(stderr=True)
    log, writer = logs.configure(settings.log.format, settings.log.level)
    try:
        gateway = Gateway(settings, log)
        listener = listen(settings)
        server = make_server(gateway)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            return runner.run(_serve(gateway, server, listener, console))
    except (PolicyError, KeyFileError) as error:
        raise ConfigError(str(error)) from error
    finally:
        writer.close()


def make_server(gateway: Gateway) -> Server:
    """The HTTP server of a gateway, with its limits."""
    settings = gateway.settings
    return Server(
        uvicorn.Config(
            gateway.app,
            http=BoundedProtocol.bounded(
                max_head_bytes=settings.limits.max_header_bytes,
                head_timeout_s=settings.limits.header_timeout_s,
                max_connections=settings.limits.max_connections,
            ),
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.limits.keep_alive_s,
            timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
            backlog=2_048,
        )
    )


def listen(settings: Settings) -> socket.socket:
    """The socket to serve on. Raises `ConfigError` where it can't be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {settings.host}:{settings.port}: {error.strerror}; choose another with --port"
        ) from None
    return listener


async def _serve(gateway: Gateway, server: Server, listener: socket.socket, console: Console) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, gateway, server, stop)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(_start(gateway, listener, console))
    status = 0
    try:
        await asyncio.wait({starting, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and starting.exception() is None:
            await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        elif starting.done():
            failure = f"keel can't start: {starting.exception()}"
            console.print(failure, style="red", highlight=False, markup=False, soft_wrap=True)
            status = 1
        gateway.draining = True
        await asyncio.sleep(gateway.settings.drain_delay_s)
        server.should_exit = True
        await serving
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await gateway.stop()
    return status


def _on_signal(gateway: Gateway, server: Server, stop: asyncio.Event) -> None:
    if stop.is_set():
        server.force_exit = True  # the second signal doesn't wait
    gateway.draining = True
    stop.set()


async def _start(gateway: Gateway, listener: socket.socket, console: Console) -> None:
    if console.is_terminal:
        with console.status("starting") as status:
            await gateway.start(lambda line: status.update(line))
    else:
        await gateway.start(lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False))
    _spare_the_collector()
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    console.print(_ready_text(gateway, url), highlight=False, soft_wrap=True, markup=False)


def _spare_the_collector() -> None:
    """Take what lives for ever out of garbage collection, and collect the young less often.

    Requests leave no cycles behind (tests/service/test_garbage.py), so that there is little to find; a look
    at 2,000 objects takes the event loop a millisecond.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 20, 50)


def _ready_text(gateway: Gateway, url: str) -> str:
    key = " -H 'Authorization: Bearer '$KEEL_API_KEY" if gateway.callers.required else ""
    names = [served.name for served in gateway.catalog.all()]
    chosen = gateway.settings.default_policy if gateway.settings.default_policy in names else names[0]
    return (
        f"Keel is ready on {url} and serves: {', '.join(names)}; its pages are at {url}/ui\n"
        f"curl -sS {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f'  -d \'{{"model":"{chosen}","messages":[{{"role":"user","content":"Hello!"}}]}}\'\n'
    )
