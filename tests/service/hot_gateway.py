"""A real `keel serve` in a process of its own, over a registry whose aliases tests move."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ADMIN_KEY = "test-admin-key-0123456789"
READY_SECONDS = 600.0
CANARY = """
max_tokens: 6
limits: {empty: 1.0, repetitive: 1.0, blocked: 0.5}
prompts: ["Hello!", "What is new?"]
"""


@dataclass
class HotGateway:
    """The process, and ways to ask it. `registry` is the folder of checkpoints."""

    folder: Path
    registry: Path
    policies: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    url: str = ""

    def environment(self) -> dict[str, str]:
        """Of the gateway, and of the command line that is to reach it."""
        (self.folder / "canary.yaml").write_text(CANARY)
        policies = self.folder / "policies"
        policies.mkdir(exist_ok=True)
        for name, text in self.policies.items():
            (policies / f"{name}.yaml").write_text(f"name: {name}\n{text}")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KEEL_")}
        chosen = {
            "KEEL_PORT": self.url.rpartition(":")[2] or "0",
            "KEEL_POLICIES": json.dumps([str(policies)]),
            "KEEL_SHIPPED_POLICIES": "false",
            "KEEL_CHECKPOINTS": str(self.registry),
            "KEEL_STATE_DIR": str(self.folder / "state"),
            "KEEL_ADMIN_KEY": ADMIN_KEY,
            "KEEL_HOTLOAD__CANARY": str(self.folder / "canary.yaml"),
            "KEEL_HOTLOAD__POLL_S": "0.3",
            "KEEL_LOG__ACCESS": "errors",
        }
        return kept | chosen | dict(self.settings)

    def start(self) -> None:
        """Start it and wait until it serves."""
        log = (self.folder / "gateway.log").open("a+")
        at = log.seek(0, os.SEEK_END)
        self.url = ""
        command = [sys.executable, "-m", "service.cli", "serve"]
        self.process = subprocess.Popen(command, env=self.environment(), stderr=log, text=True)
        deadline = time.monotonic() + READY_SECONDS
        while not self.url:
            log.seek(at)
            said = log.read()
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            for line in said.splitlines():
                if line.startswith("Keel is ready on "):
                    self.url = line.split()[4]
            time.sleep(0.1)
        log.close()

    def kill(self) -> None:
        """As the kernel does it when memory runs out."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def ask(self, text: str = "Hello!", model: str = "hot", **fields: Any) -> tuple[str, str]:
        """A greedy reply, and the checkpoint that the header names."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        response = httpx.post(
            f"{self.url}/v1/chat/completions", json={"max_tokens": 12, **body, **fields}, timeout=120
        )
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"], response.headers["x-keel-checkpoint"]

    def admin(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """GET, or POST where there is a body."""
        with httpx.Client(headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=600) as client:
            where = f"{self.url}/admin/v1/checkpoints{path}"
            response = client.get(where) if body is None else client.post(where, json=body)
            return response.status_code, response.json()


@contextmanager
def hot_gateway(
    folder: Path, registry: Path, policies: Mapping[str, str], **settings: str
) -> Iterator[HotGateway]:
    """Started, and in the end stopped, however often it was killed in between."""
    gateway = HotGateway(folder, registry, policies, settings)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()
