"""Two gateways behind nginx, with one PostgreSQL and one Redis: what replicas share, and must not lose."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.registry import Registry
from service.auth import KeyFile
from tests.fakes.vllm_hotload import install
from tests.hotload import publish_tiny

ROOT = Path(__file__).parents[2]
ADMIN = "admin-key-0123456789abcdef"
PATIENCE = 120.0  # seconds, for what must come up on a busy machine

# An upstream whose every reply has an id of its own, as engines give them.
UPSTREAM = """
import asyncio, itertools, sys
from tests.fakes import upstream as fake

numbers = itertools.count()

async def say(exchange):
    await asyncio.sleep(0.02)
    await fake.answer({**fake.completion("Hello there"), "id": f"chatcmpl-{next(numbers)}"})(exchange)

async def main():
    await fake.FakeUpstream(say).start(int(sys.argv[1]))
    await asyncio.Event().wait()

asyncio.run(main())
"""
NGINX = """
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/nginx.log warn;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  upstream keel {{
    server 127.0.0.1:{ports[0]} max_fails=1 fail_timeout=2s;
    server 127.0.0.1:{ports[1]} max_fails=1 fail_timeout=2s;
    keepalive 16;
  }}
  server {{
    listen 127.0.0.1:{port};
    add_header x-replica $upstream_addr always;
    location / {{
      proxy_pass http://keel; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_buffering off;
    }}
  }}
}}
"""
POLICIES = {
    "plain": (
        "feedback: {{store: none}}\n"
        "model: {{upstream: {{base_url: http://127.0.0.1:{upstream}/v1, model: fake}}}}\n"
    ),
    "strict": (
        "model: {{upstream: {{base_url: http://127.0.0.1:{upstream}/v1, model: fake}}}}\n"
        "input: [{{guard: patterns, patterns: ['forbidden'], action: block}}]\n"
    ),
    "hot": "model: {{checkpoint: chat}}\n",
}
EXPERIMENT = "name: halves\narms:\n  - {name: control, policy: plain}\n  - {name: new, policy: strict}\n"


@dataclass
class Cluster:
    """Where everything is. `replicas` are the gateways' own addresses, `url` is nginx's."""

    url: str
    replicas: list[str]
    database: str
    free_key: str
    limited_key: str
    gateways: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ask(
        self,
        path: str,
        body: Any,
        key: str,
        url: str = "",
        headers: dict[str, str] | None = None,
        method: str = "POST",
    ) -> tuple[int, Any, dict[str, str]]:
        """Send JSON; status, parsed answer (None where there is none), headers in lower case."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            (url or self.url) + path,
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {key}", **(headers or {})},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
                return reply.status, json.loads(reply.read()), _lower(reply.headers)
        except urllib.error.HTTPError as error:
            content = error.read()
            parsed = json.loads(content) if content.startswith(b"{") else None
            return error.code, parsed, _lower(error.headers)

    def chat(
        self, key: str = "", model: str = "plain", url: str = "", **headers: str
    ) -> tuple[int, Any, Any]:
        """A chat request with one message."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        return self.ask("/v1/chat/completions", body, key or self.free_key, url, headers)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def free_port() -> int:
    """A loopback port that nothing listens on, below those that outgoing connections are given: other tests
    make such, and it is some seconds until a gateway takes it."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def cluster(home: Path, database: str) -> Iterator[Cluster]:
    """Start all of it; entered when both gateways are ready."""
    upstream, redis, front, *ports = [free_port() for _ in range(5)]
    folders = _lay_out(home, upstream)
    keys = KeyFile(home / "a" / "keys.json")
    free, limited = keys.create("free"), keys.create("limited", requests_per_minute=6)
    shutil.copy(home / "a" / "keys.json", home / "b" / "keys.json")
    (home / "nginx.conf").write_text(NGINX.format(home=home, port=front, ports=ports))
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    found = Cluster(
        f"http://127.0.0.1:{front}", [f"http://127.0.0.1:{port}" for port in ports], database, free, limited
    )
    with contextlib.ExitStack() as stack:
        run = [
            (["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", ""], "redis"),
            ([sys.executable, "-c", UPSTREAM, str(upstream)], "upstream"),
            ([nginx, "-p", str(home), "-c", str(home / "nginx.conf")], "nginx"),
        ]
        for argv, name in run:
            stack.enter_context(_running(argv, home / f"{name}.out", {"PYTHONPATH": str(ROOT)}, home))
        for name, port in zip(("a", "b"), ports, strict=True):
            environment = _environment(home, name, port, redis, database, folders)
            argv = [sys.executable, "-m", "service.cli", "serve"]
            found.gateways.append(
                stack.enter_context(_running(argv, home / f"{name}.out", environment, ROOT))
            )
        for gateway, url, name in zip(found.gateways, found.replicas, ("a", "b"), strict=True):
            _await_ready(gateway, f"{url}/health/ready", home / f"{name}.out")
        yield found


def _lay_out(home: Path, upstream: int) -> dict[str, str]:
    """Policies, an experiment, and a registry with two models, the first of which is `chat`."""
    for name in ("policies", "experiments", "a", "b", "checkpoints"):
        (home / name).mkdir()
    for name, text in POLICIES.items():
        text = f"name: {name}\n" + text.format(upstream=upstream)
        (home / "policies" / f"{name}.yaml").write_text(text)
    (home / "experiments" / "halves.yaml").write_text(EXPERIMENT)
    for seed, name in enumerate(("base", "other")):
        publish_tiny(home / "checkpoints", name, seed)
    Registry(home / "checkpoints").point("chat", "base")
    (home / "canary.yaml").write_text('prompts: ["Hello!"]\nmax_tokens: 40\nlimits: {logprob_drop: 2.0}\n')
    return install(home / "vllm")


def _environment(
    home: Path, name: str, port: int, redis: int, database: str, fake_vllm: dict[str, str]
) -> dict[str, str]:
    return {
        "KEEL_PORT": str(port),
        "KEEL_POLICIES": json.dumps([str(home / "policies")]),
        "KEEL_EXPERIMENTS": json.dumps([str(home / "experiments")]),
        "KEEL_SHIPPED_POLICIES": "false",
        "KEEL_DEFAULT_POLICY": "plain",
        "KEEL_CHECKPOINTS": str(home / "checkpoints"),
        "KEEL_STATE_DIR": str(home / name),
        "KEEL_ADMIN_KEY": ADMIN,
        "KEEL_HASH_KEY": "the-same-for-both-replicas",
        "KEEL_STORE__URL": database,
        "KEEL_LIMITS__STORAGE": f"redis://127.0.0.1:{redis}",
        "KEEL_HOTLOAD__CANARY": str(home / "canary.yaml"),
        "KEEL_HOTLOAD__POLL_S": "0.5",
        **fake_vllm,
    }


@contextlib.contextmanager
def _running(
    argv: Sequence[str], log: Path, environment: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        child = subprocess.Popen(
            argv,
            stdout=out,
            stderr=out,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield child
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _await_ready(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert child.poll() is None, log.read_text(errors="replace")[-2_000:]
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace")[-2_000:])
