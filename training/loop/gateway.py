"""The loop's last leg: a real gateway serves the checkpoint behind an alias, and OpenAI's client asks it.

The gateway is a process of its own (`keel serve`), as training and serving meet only on disk: in the
registry's folder, where the alias says which checkpoint is meant.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

from openai import OpenAI

from training.batch.backends import end_with_parent
from training.errors import TrainingError

_POLICY = """\
name: {name}
description: The shop's assistant, as the loop trained it.
model: {{checkpoint: {alias}}}
output:
  - {{guard: secrets, action: redact}}
"""
_READY = re.compile(r"Keel is ready on (http://\S+)")


@dataclass(frozen=True, slots=True)
class Served:
    """A reply, and the checkpoint (`name@digest`) that the gateway says gave it."""

    text: str
    checkpoint: str


class ServingGateway:
    """A running `keel serve`; made by `serving`."""

    def __init__(self, url: str, admin_key: str, policy: str) -> None:
        self.url = url
        self._admin_key = admin_key
        self._policy = policy
        self._client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120.0)

    def ask(self, question: str, max_tokens: int = 64) -> Served:
        """One question through OpenAI's client; the headers come with the same response."""
        raw = self._client.chat.completions.with_raw_response.create(
            model=self._policy,
            messages=[{"role": "user", "content": question}],
            max_tokens=max_tokens,
            temperature=0,
        )
        return Served(raw.parse().choices[0].message.content or "", raw.headers["x-keel-checkpoint"])

    def reload(self) -> None:
        """Have the alias read again: the new checkpoint's engine starts and takes over, without a restart."""
        request = urllib.request.Request(  # noqa: S310  the gateway's own loopback address
            f"{self.url}/admin/v1/policies/reload",
            data=b"",
            headers={"authorization": f"Bearer {self._admin_key}"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=600) as response:  # noqa: S310
            outcome = json.load(response)
        if not outcome["ok"]:
            raise TrainingError(f"the gateway refused to reload its policies: {outcome['errors']}")

    def close(self) -> None:
        self._client.close()


@contextmanager
def serving(registry: Path, alias: str, work: Path, limit_s: float = 600.0) -> Iterator[ServingGateway]:
    """Serve `alias` of `registry` with a vLLM of the gateway's own, until the block ends.

    Raises TrainingError, with the gateway's last words, where it is not ready within `limit_s` seconds.
    """
    policies = work / "policies"
    policies.mkdir(parents=True, exist_ok=True)
    (policies / "shop.yaml").write_text(_POLICY.format(name="shop", alias=alias), encoding="utf-8")
    admin_key = secrets.token_urlsafe(32)
    settings = {"KEEL_DEFAULT_POLICY": "shop", "KEEL_ADMIN_KEY": admin_key}
    with running_gateway(policies, registry, work / "state", settings, limit_s) as url:
        gateway = ServingGateway(url, admin_key, "shop")
        try:
            yield gateway
        finally:
            gateway.close()


@contextmanager
def running_gateway(
    policies: Path, registry: Path, state: Path, settings: Mapping[str, str], limit_s: float = 600.0
) -> Iterator[str]:
    """`keel serve` with these policies and none of the shipped ones until the block ends; yields its address.

    Raises TrainingError, with the gateway's last words, where it is not ready within `limit_s` seconds.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEEL_")}
    environment = kept | {
        "KEEL_SHIPPED_POLICIES": "false",
        "KEEL_CHECKPOINTS": str(registry),
        "KEEL_STATE_DIR": str(state),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        **settings,
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--policies", str(policies)]
    process = subprocess.Popen(  # noqa: S603  this project's own command
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=end_with_parent
    )
    assert process.stderr is not None  # noqa: S101  it was asked for
    said: deque[str] = deque(maxlen=20)
    address: list[str] = []
    reader = Thread(target=_read, args=(process.stderr, said, address), daemon=True)
    reader.start()
    try:
        _wait(process, address, limit_s)
        if not address:
            raise TrainingError("the gateway did not get ready; it said:\n" + "".join(said))
        yield address[0]
    finally:
        _end(process)
        reader.join(10)


def _wait(process: subprocess.Popen[str], address: list[str], limit_s: float) -> None:
    """Until there is an address, the process has ended, or the time is up."""
    end = time.monotonic() + limit_s
    while not address and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(lines: IO[str], said: deque[str], address: list[str]) -> None:
    """Find the address on the ready line, keep the last words, and let no full pipe block the gateway."""
    with lines:
        for line in lines:
            said.append(line)
            if found := _READY.search(line):
                address.append(found.group(1))
