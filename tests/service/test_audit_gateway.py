"""What the gateway puts into its audit log, and that nothing is changed unrecorded."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from service.audit_chain import Record, Sealer, Verifier, read
from service.commands import app
from tests.fakes import upstream as fake
from tests.service.conftest import Running, Serve

BLOCKING = """
input: [{guard: patterns, patterns: ['in-secret'], action: block}]
output: [{guard: patterns, patterns: ['out-secret'], action: block}]
"""
ADMIN = {"authorization": "Bearer an-admin-key-of-length"}
API = {"authorization": "Bearer an-api-key-of-length"}
KEYS = {"api_keys": ["an-api-key-of-length"], "admin_key": "an-admin-key-of-length"}


async def records(keel: Running, action: str = "") -> list[Record]:
    await keel.gateway.audit.flush()
    folder = keel.gateway.settings.audit_folder
    return [one for one in read(folder, "gateway") if one.action.startswith(action)]


async def test_blocks_are_recorded_without_their_text(serve: Serve) -> None:
    async with serve({"blocking": BLOCKING}, **KEYS) as keel:
        body = {"model": "blocking", "messages": [{"role": "user", "content": "the in-secret of zanzibar"}]}
        status, _, _ = await keel.post("/v1/chat/completions", body, API)
        assert status == 400
        body["messages"][0]["content"] = "hello"  # type: ignore[index]
        for stream in (False, True):
            keel.upstream.script(fake.well_behaved("an out-secret of zanzibar"))
            raw = await keel.session.post(
                keel.url + "/v1/chat/completions", json={**body, "stream": stream}, headers=API
            )
            assert b"content_filter" in await raw.read()
        await keel.post("/v1/chat/completions", body, API)  # passes
        found = await records(keel, "guard.")
        assert [(one.action, one.actor, one.subject) for one in found] == 3 * [
            ("guard.block", "key:settings-1", "blocking")
        ]
        assert [one.details["findings"][0]["stage"] for one in found] == ["input", "output", "output"]
        assert found[1].details["findings"] == found[2].details["findings"]
        assert all(one.details["request_id"].startswith("req-") for one in found)
        folder = keel.gateway.settings.audit_folder
        text = b"".join(path.read_bytes() for path in folder.glob("*.jsonl"))
        assert b"zanzibar" not in text
        assert b"-of-length" not in text  # nor any key
        _, page, _ = await keel.get("/metrics", API)
        assert b'keel_audit_records_total{action="guard.block"} 3.0' in page
    assert Verifier(folder, "gateway", Sealer()).verify().problems == []
    assert [one.action for one in read(folder, "gateway")][-1] == "gateway.stop"


async def test_admin_calls_are_recorded_before_they_are_answered(serve: Serve) -> None:
    async with serve(**KEYS) as keel:
        assert (await keel.get("/admin/v1/policies", ADMIN))[0] == 200
        assert (await keel.get("/admin/v1/policies", API))[0] == 403
        assert (await keel.get("/admin/v1/policies"))[0] == 401
        status, _, answer = await keel.post("/admin/v1/policies/reload", {}, ADMIN)
        assert status == 200
        # No flush here: the answer came, so it is there.
        (call,) = [
            one for one in read(keel.gateway.settings.audit_folder, "gateway") if one.action == "admin.call"
        ]
        assert (call.actor, call.subject) == ("admin:settings-admin", "/admin/v1/policies/reload")
        assert call.details["status"] == 200
        assert call.details["request_id"] == answer.headers["x-request-id"]
        (reload,) = await records(keel, "policy.reload")
        assert reload.actor == "admin:settings-admin"
        assert reload.details["ok"] is True
        assert list(reload.details["policies"]) == ["plain"]
        (seen,) = await records(keel, "admin.read")
        assert (seen.actor, seen.subject) == ("admin:settings-admin", "/admin/v1/policies")
        denied = [(one.actor, one.details["status"]) for one in await records(keel, "admin.denied")]
        assert sorted(denied) == [("anonymous", 401), ("key:settings-1", 403)]
        (started,) = await records(keel, "gateway.start")
        assert list(started.details["policies"]) == ["plain"]


async def test_nothing_is_changed_unrecorded(serve: Serve) -> None:
    async with serve(**KEYS) as keel:
        file = keel.gateway.settings.audit_folder / "gateway.jsonl"
        await keel.gateway.audit.flush()
        kept = file.read_bytes()
        file.unlink()
        file.symlink_to("/dev/full")
        status, body, _ = await keel.post("/admin/v1/policies/reload", {}, ADMIN)
        assert status == 503  # carried out, and told so
        assert "could not be recorded" in body["error"]["message"]
        assert body["error"]["code"] == "audit_unavailable"
        status, body, _ = await keel.post("/admin/v1/policies/reload", {}, ADMIN)
        assert status == 503  # and no second time
        assert "nothing is changed unrecorded" in body["error"]["message"]
        assert (await keel.get("/admin/v1/policies", ADMIN))[0] == 200
        assert b"keel_audit_failing 1.0" in (await keel.get("/metrics", ADMIN))[1]
        file.unlink()
        file.write_bytes(kept)
        await keel.gateway.audit.flush()
        assert (await keel.post("/admin/v1/policies/reload", {}, ADMIN))[0] == 200
        assert [one.details["status"] for one in await records(keel, "admin.call")] == [200, 200]
    assert Verifier(file.parent, "gateway", Sealer()).verify().problems == []


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("KEEL_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


def test_the_command_line(tmp_path: Path, cli: CliRunner) -> None:
    assert cli.invoke(app, ["audit", "verify"]).exit_code == 2
    assert cli.invoke(app, ["keys", "create", "ann"]).exit_code == 0
    assert cli.invoke(app, ["keys", "create", "ops", "--admin"]).exit_code == 0
    assert cli.invoke(app, ["keys", "revoke", "ann"]).exit_code == 0
    result = cli.invoke(app, ["audit", "verify"])
    assert result.exit_code == 0
    assert "gateway-cli: 3 records; head 3:" in result.stdout
    head = result.stdout.split("head ")[1].strip()
    assert cli.invoke(app, ["audit", "verify", "--expect", head]).exit_code == 0
    shown = cli.invoke(app, ["audit", "show", "--action", "keys.create", "--json"]).stdout.splitlines()
    assert [orjson.loads(line)["subject"] for line in shown] == ["ann", "ops"]
    shown = cli.invoke(app, ["audit", "show", "--limit", "1", "--actor", "cli:"]).stdout
    assert "keys.revoke" in shown
    assert "keys.create" not in shown
    assert "no such records" in cli.invoke(app, ["audit", "show", "--until", "2020-01-01"]).stdout
    assert len(cli.invoke(app, ["audit", "show", "--since", "2020-01-01", "--json"]).stdout.splitlines()) == 3
    file = tmp_path / "audit" / "gateway-cli.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"subject":"ops"', b'"subject":"eve"'))
    result = cli.invoke(app, ["audit", "verify"])
    assert result.exit_code == 1
    assert "gateway-cli.jsonl:2: record 2: its seal is wrong" in result.stderr


def test_the_command_line_with_a_key(cli: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.invoke(app, ["keys", "create", "old"])
    monkeypatch.setenv("KEEL_AUDIT__KEY", "a-key-for-the-audit-log")
    cli.invoke(app, ["keys", "create", "new"])
    result = cli.invoke(app, ["audit", "verify"])
    assert result.exit_code == 1
    assert "--unkeyed-until 1" in result.stderr
    assert cli.invoke(app, ["audit", "verify", "--unkeyed-until", "1"]).exit_code == 0
    monkeypatch.delenv("KEEL_AUDIT__KEY")
    assert "none was given" in cli.invoke(app, ["audit", "verify"]).stderr
