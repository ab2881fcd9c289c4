"""Experiments that are made by the admin API: served at once, everywhere, and never changed unseen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.commands import app
from tests.service.conftest import Running, Serve, until
from tests.service.experiments.conftest import ADMIN, TWO, Trying, ask, say_hello

PATH = "/admin/v1/experiments"
YAML = {**ADMIN, "content-type": "application/yaml"}
MADE = {
    "name": "test",
    "arms": [{"name": "control", "policy": "plain"}, {"name": "new", "policy": "other"}],
    "every_s": 0.3,
    "window_s": 0.1,
}
KEY = ADMIN["authorization"][7:]


async def send(
    keel: Running, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    sent = {"data": body.encode()} if isinstance(body, str) else {"json": body}
    kind = YAML if isinstance(body, str) else ADMIN
    async with keel.session.request(method, keel.url + path, headers={**kind, **headers}, **sent) as reply:
        return reply.status, await reply.json(content_type=None), reply.headers


def audited(keel: Running, action: str) -> list[dict[str, Any]]:
    lines = (
        line
        for path in keel.gateway.settings.audit_folder.iterdir()
        for line in path.read_text().splitlines()
    )
    return [record for record in map(json.loads, lines) if record.get("action") == action]


async def arms_of(keel: Running, units: int = 20) -> set[str]:
    return {(await ask(keel, str(number)))[0] for number in range(units)}


async def test_what_is_made_is_served_at_once_and_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    settings = {"admin_key": KEY}
    async with serve({"other": ""}, **settings) as keel:
        keel.upstream.default = say_hello
        assert not keel.gateway.database.there  # nothing was opened for what isn't used
        assert (await keel.chat(model="test"))[0] == 404
        status, answer, headers = await send(keel, "PUT", f"{PATH}/test", MADE)
        assert (status, answer["outcome"], headers["ETag"]) == (201, "created", '"1"')
        assert answer["shares"] == {"control": 0.5, "new": 0.5}
        assert await arms_of(keel) == {"control", "new"}
        listed = (await send(keel, "GET", PATH))[1]
        assert [(one["name"], one["origin"], one["path"]) for one in listed["experiments"]] == [
            ("test", "api", None)
        ]
        assert b'"id":"test"' in (await keel.get("/v1/models"))[1]
        records = audited(keel, "experiment.created")
        assert [(record["subject"], record["details"]) for record in records] == [("test", {"revision": 1})]
        assert records[0]["actor"].startswith("admin:")
    async with serve({"other": ""}, **settings) as keel:
        keel.upstream.default = say_hello
        assert await arms_of(keel) == {"control", "new"}


async def test_while_the_store_is_away_the_control_answers(serve: Serve) -> None:
    async with serve({"other": ""}, admin_key=KEY) as keel:
        assert (await send(keel, "PUT", f"{PATH}/test", MADE))[0] == 201
    away = {"store": {"url": "postgresql://keel@127.0.0.1:1/keel"}, "admin_key": KEY}
    async with serve({"other": ""}, **away) as keel:
        keel.upstream.default = say_hello
        assert await arms_of(keel) == {"control"}
        assert (await send(keel, "PUT", f"{PATH}/new", {**MADE, "name": "new"}))[0] == 503
        assert (await send(keel, "GET", f"{PATH}/test"))[0] == 503


async def test_nobody_overwrites_what_they_have_not_seen(serve: Serve) -> None:
    async with serve({"other": ""}, admin_key=KEY) as keel:
        await send(keel, "PUT", f"{PATH}/test", MADE)
        again = {**MADE, "description": "Again."}
        assert (await send(keel, "PUT", f"{PATH}/test", MADE, **{"if-match": '"1"'}))[1][
            "outcome"
        ] == "unchanged"
        for headers in ({}, {"if-match": '"7"'}, {"if-match": "nonsense"}):
            status, answer, _ = await send(keel, "PUT", f"{PATH}/test", again, **headers)
            assert (status, answer["error"]["code"]) == (409, "conflict")
            assert "revision 1" in answer["error"]["message"]
        both = await asyncio.gather(
            *(
                send(keel, "PUT", f"{PATH}/test", {**MADE, "description": word}, **{"if-match": '"1"'})
                for word in ("one", "two")
            )
        )
        assert sorted(status for status, _, _ in both) == [200, 409]
        status, said, headers = await send(keel, "GET", f"{PATH}/test/definition")
        assert (status, said["revision"], headers["ETag"]) == (200, 2, '"2"')
        winner = next(answer for status, answer, _ in both if status == 200)
        assert winner["outcome"] == "replaced"
        assert (await send(keel, "DELETE", f"{PATH}/test", **{"if-match": '"1"'}))[0] == 409
        assert (await send(keel, "PUT", f"{PATH}/test", again, **{"if-match": "*"}))[0] == 200
        assert (await send(keel, "PUT", f"{PATH}/new", {**MADE, "name": "new"}, **{"if-match": '"1"'}))[
            0
        ] == 409


WRONG = [
    (
        "name: test\narms:\n  - {name: control, policy: plain}\n  - {name: new, policy: othr}\n",
        "arms[1].policy: there is no policy 'othr'; did you mean 'other'?",
        {"line": 4, "column": 25},
    ),
    ({**MADE, "windows": 1}, "windows: unknown key; did you mean 'window_s'?", {}),
    ({**MADE, "arms": MADE["arms"][:1]}, "arms: must have at least 2, not 1", {}),
    ({**MADE, "gates": [{"metric": "reward", "min": 0}]}, "gates: gates stand between", {}),
    ("name: test\nname: test\n", "key 'name' is given twice", {"line": 2, "column": 1}),
    ([], "must be a mapping", {}),
]


async def test_what_is_wrong_is_said_with_its_place(serve: Serve) -> None:
    async with serve({"other": ""}, admin_key=KEY) as keel:
        for body, said, place in WRONG:
            for path in (f"{PATH}/test", f"{PATH}/test?dry_run=true"):
                status, answer, _ = await send(keel, "PUT", path, body)
                assert (status, answer["error"]["code"]) == (400, "invalid_value")
                found = answer["problems"][0]
                assert said in found["message"]
                assert {key: found[key] for key in found if key != "message"} == place
        assert not keel.gateway.house.definitions.known


async def test_a_dry_run_changes_nothing_and_names_must_agree(serve: Serve) -> None:
    async with serve({"other": ""}, admin_key=KEY) as keel:
        status, answer, headers = await send(keel, "PUT", f"{PATH}/test?dry_run=true", MADE)
        assert (status, answer["outcome"], answer["dry_run"]) == (200, "created", True)
        assert "ETag" not in headers
        assert (await send(keel, "GET", f"{PATH}/test/definition"))[0] == 404
        status, answer, _ = await send(keel, "PUT", f"{PATH}/else", MADE)
        assert (status, answer["error"]["param"]) == (400, "name")
        assert (await send(keel, "DELETE", f"{PATH}/test"))[0] == 404
        big = "# " + "x" * 300_000
        assert (await send(keel, "PUT", f"{PATH}/test", big))[0] == 400


async def test_files_keep_their_names(trying: Trying) -> None:
    async with trying() as keel:
        status, answer, _ = await send(keel, "PUT", f"{PATH}/test", MADE)
        assert (status, "defined in a file" in answer["error"]["message"]) == (409, True)
        status, answer, _ = await send(keel, "DELETE", f"{PATH}/test")
        assert (status, "remove the file" in answer["error"]["message"]) == (404, True)
        other = {**MADE, "name": "second"}
        assert (await send(keel, "PUT", f"{PATH}/second", other))[0] == 201
        folder = keel.gateway.settings.experiments[0]
        (folder / "second.yaml").write_text("name: second\n" + TWO)
        assert (await send(keel, "POST", "/admin/v1/policies/reload"))[0] == 200
        listed = (await send(keel, "GET", PATH))[1]
        assert "the file's is served" in listed["refused"]["second"]
        assert {one["name"]: one["origin"] for one in listed["experiments"]} == {
            "test": "file",
            "second": "file",
        }
        (folder / "second.yaml").unlink()
        assert (await send(keel, "POST", "/admin/v1/policies/reload"))[0] == 200
        listed = (await send(keel, "GET", PATH))[1]
        assert {one["name"]: one["origin"] for one in listed["experiments"]} == {
            "test": "file",
            "second": "api",
        }
        assert listed["refused"] == {}


async def test_what_was_ended_stays_ended_until_it_is_archived_and_made_anew(serve: Serve) -> None:
    async with serve({"other": ""}, admin_key=KEY) as keel:
        keel.upstream.default = say_hello
        await send(keel, "PUT", f"{PATH}/test", MADE)
        assert (await send(keel, "POST", f"{PATH}/test/rollback", {"reason": "bad"}))[0] == 200
        changed = {**MADE, "alpha": 0.1}
        assert (await send(keel, "PUT", f"{PATH}/test", changed, **{"if-match": '"1"'}))[0] == 200
        assert (await send(keel, "GET", f"{PATH}/test"))[1]["status"] == "rolled_back"
        assert await arms_of(keel) == {"control"}
        status, answer, _ = await send(keel, "DELETE", f"{PATH}/test", **{"if-match": '"2"'})
        assert (status, answer["outcome"], answer["revision"]) == (200, "archived", 3)
        assert (await keel.chat(model="test"))[0] == 404
        listed = (await send(keel, "GET", PATH))[1]
        assert (listed["experiments"], listed["archived"]) == ([], ["test"])
        assert (await send(keel, "GET", f"{PATH}/test/definition"))[1]["archived"]
        assert (await send(keel, "DELETE", f"{PATH}/test"))[0] == 404
        status, answer, _ = await send(keel, "PUT", f"{PATH}/test", MADE)
        assert (status, answer["outcome"], answer["revision"]) == (201, "created", 4)
        assert await arms_of(keel) == {"control", "new"}
        shown = (await send(keel, "GET", f"{PATH}/test"))[1]
        assert shown["status"] == "running"
        assert [event["action"] for event in shown["history"]] == ["begin", "archive", "roll_back", "begin"]
        assert len(audited(keel, "experiment.archived")) == 1


async def test_one_whose_policy_goes_is_not_served_and_says_why(serve: Serve, tmp_path: Path) -> None:
    async with serve({"other": ""}, admin_key=KEY) as keel:
        await send(keel, "PUT", f"{PATH}/test", MADE)
        text = (tmp_path / "policies" / "other.yaml").read_text()
        (tmp_path / "policies" / "other.yaml").unlink()
        await send(keel, "POST", "/admin/v1/policies/reload")
        listed = (await send(keel, "GET", PATH))[1]
        assert listed["experiments"] == []
        assert "arms[1].policy: there is no policy 'other'" in listed["refused"]["test"]
        (tmp_path / "policies" / "other.yaml").write_text(text)
        await send(keel, "POST", "/admin/v1/policies/reload")
        assert [one["name"] for one in (await send(keel, "GET", PATH))[1]["experiments"]] == ["test"]


@pytest.mark.servers("initdb")
async def test_two_gateways_that_share_a_postgres_serve_the_same(
    serve: Serve, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.experiments.house.FOLLOW_SECONDS", 0.1)
    shared: dict[str, Any] = {"store": {"url": postgres_url}, "hash_key": "k" * 32, "admin_key": KEY}
    second = {**shared, "state_dir": tmp_path / "second"}
    async with serve({"other": ""}, **shared) as one, serve({"other": ""}, **second) as two:
        one.upstream.default = two.upstream.default = say_hello
        made = await asyncio.gather(
            send(one, "PUT", f"{PATH}/test", MADE), send(two, "PUT", f"{PATH}/test", {**MADE, "alpha": 0.1})
        )
        assert sorted(status for status, _, _ in made) == [201, 409]
        for keel in (one, two):
            await eventually_has(keel, {"test"})
            assert await arms_of(keel) == {"control", "new"}
        changed = {**MADE, "description": "Changed."}
        both = await asyncio.gather(
            *(send(keel, "PUT", f"{PATH}/test", changed, **{"if-match": '"1"'}) for keel in (one, two))
        )
        assert sorted(status for status, _, _ in both) == [200, 409]
        assert (await send(two, "DELETE", f"{PATH}/test"))[0] == 200
        for keel in (one, two):
            await eventually_has(keel, set())
            assert (await keel.chat(model="test"))[0] == 404


async def eventually_has(keel: Running, names: set[str]) -> None:
    """Until these are served, and how they stand is known: before that the control answers."""
    experiments = keel.gateway.house.experiments

    def known() -> bool:
        live = experiments.live
        return live.keys() == names and all(one.known for one in live.values())

    await until(known, 20)


async def test_the_command_line_applies_exports_and_deletes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "made.yaml"
    file.write_text("name: test\n" + TWO)
    monkeypatch.setenv("KEEL_ADMIN_KEY", KEY)
    async with serve({"other": ""}, admin_key=KEY) as keel:

        async def run(*arguments: str) -> tuple[int, str]:
            argv = ["experiments", *arguments, "--url", keel.url]
            result = await asyncio.to_thread(CliRunner().invoke, app, argv)
            return result.exit_code, result.output

        assert (await run("apply", str(file), "--dry-run"))[1].startswith("would be created: test")
        assert await run("apply", str(file)) == (0, "created: test, revision 1 (control 50%, new 50%)\n")
        assert (await run("apply", str(file)))[1].startswith("unchanged: test")
        file.write_text("name: test\nalpha: 0.1\n" + TWO)
        assert (await run("apply", str(file)))[1].startswith("replaced: test, revision 2")
        text = (await run("export", "test"))[1]
        assert text.startswith("name: test\n")
        file.write_text(text)
        assert (await run("apply", str(file)))[1].startswith("unchanged")
        file.write_text("name: test\n" + TWO.replace("other", "nothing"))
        status, said = await run("apply", str(file))
        assert (status, "there is no policy 'nothing'" in said) == (2, True)
        assert await run("delete", "test") == (0, "archived: test, revision 3\n")
        assert (await run("delete", "test"))[0] == 2
        file.write_text("name: test\n" + TWO)
        assert (await run("apply", str(file)))[1].startswith("created: test, revision 4")
