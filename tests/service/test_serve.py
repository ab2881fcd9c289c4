"""`keel` as a process: the ready line, signals, draining, and what it says when something is wrong.

The time limits are for machines that have other things to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.fakes import upstream as fake
from tests.fakes.upstream import FakeUpstream

ROOT = Path(__file__).parents[2]
POLICY = 'name: plain\nmodel: {upstream: {base_url: "%s/v1", model: fake}}\n'


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KEEL_")}
    return {**kept, "KEEL_STATE_DIR": str(tmp_path / "state"), "COLUMNS": "200", "NO_COLOR": "1"}


async def keel(tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.cli",
        *arguments,
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(240):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def serving(
    tmp_path: Path, upstream: FakeUpstream, *arguments: str
) -> AsyncIterator[tuple[Process, str, list[str]]]:
    """A gateway process, once it has said that it is ready; its URL, and what it has said."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "plain.yaml").write_text(POLICY % upstream.base_url)
    env = {**environment(tmp_path), "KEEL_SHIPPED_POLICIES": "false", "KEEL_DEFAULT_POLICY": "plain"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.cli",
        "serve",
        "--port",
        "0",
        "--policies",
        str(folder),
        *arguments,
        cwd=ROOT,
        env=env,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(120):
            while not any("-d '" in line for line in said):
                line = (await process.stderr.readline()).decode()
                assert line, "".join(said)
                said.append(line)
        found = re.search(r"ready on (http://\S+)", "".join(said))
        assert found is not None
        yield process, found.group(1), said
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_ready_line_and_its_curl(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, serving(tmp_path, upstream) as (process, url, said):
        text = "".join(said)
        command = shlex.split(text[text.index("curl ") :].replace("\\\n", " "))
        assert command[:3] == ["curl", "-sS", f"{url}/v1/chat/completions"]
        body = command[command.index("-d") + 1]
        async with aiohttp.ClientSession() as session, session.post(command[2], data=body) as response:
            assert response.status == 200
            assert (await response.json())["model"] == "plain"
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            assert await process.wait() == 0


async def test_sigterm_lets_requests_finish(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, serving(tmp_path, upstream) as (process, url, _):
        upstream.script(fake.stream(["one ", "two ", "three "], delay=0.4))
        body = {"model": "plain", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                await response.content.readline()
                process.send_signal(signal.SIGTERM)
                rest = await response.read()
            assert b"three" in rest
            assert rest.endswith(b"data: [DONE]\n\n")
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"{url}/health/live")
        async with asyncio.timeout(10):
            assert await process.wait() == 0


async def test_drain_has_a_limit_and_the_stream_a_clean_end(tmp_path: Path) -> None:
    config = tmp_path / "keel.yaml"
    config.write_text("drain_timeout_s: 1\n")
    async with (
        FakeUpstream() as upstream,
        serving(tmp_path, upstream, "--config", str(config)) as (process, url, _),
    ):
        upstream.script(fake.stream(["one "], stall_after=1))
        body = {"model": "plain", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/chat/completions", json=body) as response,
        ):
            await response.content.readline()
            process.send_signal(signal.SIGTERM)
            rest = await response.read()
        assert b'"error"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(10):
            assert await process.wait() == 0


async def test_mistakes_are_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("prot: 1\nlimits: {max_body_bytes: 0}\n")
    broken = tmp_path / "policies"
    broken.mkdir()
    (broken / "p.yaml").write_text(
        "name: p\nmodel: {upstream: {base_url: 'http://x', model: m}}\ninputt: []\n"
    )
    cases = {
        ("serve", "--config", str(tmp_path / "none.yaml")): "does not exist",
        ("serve", "--config", str(bad)): "limits.max_body_bytes",
        ("serve", "--upstream", "http://127.0.0.1:1"): "--upstream and --model belong together",
        ("serve", "--host", "0.0.0.0", "--port", "0"): "without API keys",  # noqa: S104
        ("serve", "--port", "0", "--policies", str(broken)): "p.yaml:3:",
        ("keys", "revoke", "nobody"): "no key named 'nobody'",
    }
    answers = await asyncio.gather(*(keel(tmp_path, *arguments) for arguments in cases))
    for (arguments, message), (code, _, err) in zip(cases.items(), answers, strict=True):
        assert code == 2, (arguments, err)
        assert message in err, (arguments, err)
        assert "Traceback" not in err


async def test_keys_from_the_command_line(tmp_path: Path) -> None:
    code, out, err = await keel(tmp_path, "keys", "create", "ann", "--requests-per-minute", "9")
    assert code == 0
    key = out.strip()
    assert key.startswith("keel-")
    assert key not in err
    stored = json.loads((tmp_path / "state" / "keys.json").read_text())
    assert key not in json.dumps(stored)
    _, out, _ = await keel(tmp_path, "keys", "list")
    assert "ann" in out
    assert key not in out
    assert (await keel(tmp_path, "keys", "revoke", "ann"))[0] == 0
    _, out, _ = await keel(tmp_path, "keys", "list")
    assert "no keys" in out


async def test_help_and_checkpoints(tmp_path: Path) -> None:
    (code, out, _), (listed, table, _) = await asyncio.gather(
        keel(tmp_path, "--help"), keel(tmp_path, "checkpoints", "list")
    )
    assert code == 0
    for command in ("serve", "policy", "keys", "checkpoints"):
        assert command in out
    assert listed == 0
    assert "demo-chat" in table or "no checkpoints" in table


async def test_the_gateway_imports_no_model_libraries(tmp_path: Path) -> None:
    code = "import sys, service.app, service.serve, service.commands; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT, stdout=PIPE)
    out, _ = await process.communicate()
    loaded = {name.partition(".")[0] for name in out.decode().split()}
    assert not loaded & {"torch", "transformers", "presidio_analyzer", "spacy", "training", "onnxruntime"}
