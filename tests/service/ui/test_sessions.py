"""Logging in, and who may do what from a page: over HTTP, without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.auth import Callers, KeyFile
from service.ui.sessions import Session, Sessions
from tests.service.conftest import Running, Serve

KEY, ADMIN = "keel-test-key-0123456789", "keel-admin-key-0123456789"
CHAT = {"model": "plain", "messages": [{"role": "user", "content": "x"}]}


async def log_in(keel: Running, key: str) -> dict[str, str]:
    """The headers of a page that is logged in."""
    status, answer, response = await keel.post("/ui/api/login", {"key": key})
    assert status == 200, answer
    value = response.headers["set-cookie"].partition(";")[0]
    keel.session.cookie_jar.clear()
    return {"cookie": value, "x-csrf-token": answer["csrf"]}


async def test_what_each_role_may_do(serve: Serve, tmp_path: Path) -> None:
    rater = KeyFile(tmp_path / "state" / "keys.json").create("ada", role="rater")
    async with serve(api_keys=[KEY], admin_key=ADMIN) as keel:
        for key, chat, policies in [(ADMIN, 200, 200), (KEY, 200, 403), (rater, 403, 403)]:
            headers = await log_in(keel, key)
            status, answer, _ = await keel.post("/ui/api/v1/chat/completions", CHAT, headers)
            assert status == chat, answer
            status, _, _ = await keel.get("/ui/api/admin/v1/policies", headers)
            assert status == policies
        headers = {"authorization": f"Bearer {rater}"}
        status, answer, _ = await keel.post("/v1/chat/completions", CHAT, headers)
        assert (status, answer["error"]["code"]) == (403, "permission_denied")


async def test_nobody_gets_in_without_a_session(serve: Serve) -> None:
    async with serve(api_keys=[KEY], admin_key=ADMIN) as keel:
        status, answer, _ = await keel.get("/ui/api/session")
        assert (status, answer) == (200, b'{"role":null,"pages":[]}')
        for headers in (
            {},
            {"cookie": "keel_session=guest.00.9999999999.AAAA"},
            {"cookie": "keel_session=é;;="},
        ):
            status, answer, _ = await keel.post("/ui/api/v1/chat/completions", CHAT, headers)
            assert (status, answer["error"]["code"]) == (401, "no_session")
        status, answer, response = await keel.post("/ui/api/login", {"key": "keel-wrong"})
        assert status == 401 and "set-cookie" not in response.headers


async def test_a_change_needs_the_token_and_must_come_from_our_page(serve: Serve) -> None:
    async with serve(admin_key=ADMIN) as keel:
        headers = await log_in(keel, ADMIN)
        path = "/ui/api/admin/v1/policies/reload"
        assert (await keel.post(path, {}, headers))[0] == 200
        other = await log_in(keel, ADMIN)
        for wrong in (
            {"cookie": headers["cookie"]},
            {**headers, "x-csrf-token": other["x-csrf-token"]},
            {**headers, "origin": "http://evil.example"},
            {**headers, "sec-fetch-site": "cross-site"},
        ):
            status, answer, _ = await keel.post(path, {}, wrong)
            assert status == 403, answer
        assert (await keel.post(path, {}, {**headers, "origin": keel.url}))[0] == 200
        # An admin's session is not an API key, nor the reverse.
        assert (await keel.get("/admin/v1/policies", headers))[0] == 401


async def test_the_cookie_is_kept_from_scripts_and_other_sites(serve: Serve) -> None:
    async with serve(admin_key=ADMIN, trusted_hosts=["keel.example"]) as keel:
        _, _, response = await keel.post("/ui/api/login", {"key": ADMIN})
        cookie = response.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/ui"} <= set(
            cookie.split("; ")
        ) and "Secure" not in cookie
        _, _, response = await keel.post("/ui/api/login", {"key": ADMIN}, {"host": "keel.example"})
        assert "; Secure" in response.headers["set-cookie"]
        headers = await log_in(keel, ADMIN)
        _, _, response = await keel.post("/ui/api/logout", {}, headers)
        assert "Max-Age=0" in response.headers["set-cookie"]


async def test_logins_are_counted(serve: Serve) -> None:
    async with serve(admin_key=ADMIN) as keel:
        seen = [(await keel.post("/ui/api/login", {"key": f"keel-guess-{i}"}))[0] for i in range(22)]
        assert seen[0] == 401 and seen[-1] == 429
        status, answer, response = await keel.post("/ui/api/login", {"key": ADMIN})
        assert (status, "tries to log in" in answer["error"]["message"]) == (429, True)
        assert int(response.headers["retry-after"]) >= 1


async def test_a_guest_of_a_gateway_without_keys_may_try_it(serve: Serve) -> None:
    async with serve() as keel:
        status, raw, response = await keel.get("/ui/api/session")
        assert status == 200 and b'"role":"guest"' in raw
        cookie = {"cookie": response.headers["set-cookie"].partition(";")[0]}
        assert (await keel.get("/ui/api/v1/models", cookie))[0] == 200
        assert (await keel.get("/ui/api/admin/v1/policies", cookie))[0] == 401
        status, answer, _ = await keel.get("/ui/api/v1/models", {**cookie, "host": "evil.example"})
        assert status == 403, answer


async def test_pages_say_what_browsers_may_run(serve: Serve) -> None:
    async with serve() as keel:
        for path in ("/ui", "/ui/playground", "/ui/static/app.js", "/ui/static/tokens.css"):
            status, body, response = await keel.get(path)
            assert status == 200 and body
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert response.headers["x-content-type-options"] == "nosniff"
            status, body, _ = await keel.get(path, {"if-none-match": response.headers["etag"]})
            assert (status, body) == (304, b"")
        for path in ("/ui/nothing", "/ui/static/../files.py", "/ui/static/%2e%2e/files.py", "/ui/app.js"):
            assert (await keel.get(path))[0] == 404
        assert (await keel.post("/ui", {}))[0] == 405
        _, metrics, _ = await keel.get("/metrics")
        assert b'route="/ui/static"' in metrics and b"app.js" not in metrics


@pytest.fixture
def callers(tmp_path: Path) -> tuple[KeyFile, Callers, str]:
    file = KeyFile(tmp_path / "keys.json")
    key = file.create("ada", role="rater")
    return file, Callers(file), key


def test_a_session_ends_with_time_with_its_key_and_with_another_secret(
    callers: tuple[KeyFile, Callers, str],
) -> None:
    file, known, key = callers
    clock = [1_000.0]
    sessions = Sessions(b"secret", known, lambda: clock[0])
    caller = known.find(key)
    session, value = sessions.begin(caller)
    assert sessions.read(value) == session == Session(caller, session.csrf)
    assert Sessions(b"secret", known, lambda: clock[0]).read(value) == session  # another replica
    assert Sessions(b"other", known, lambda: clock[0]).read(value) is None
    for at in range(len(value)):
        forged = value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :]
        assert sessions.read(forged) is None
    clock[0] += 12 * 3600
    assert sessions.read(value) is None
    clock[0] = 1_000.0
    file.revoke("ada")
    known.refresh()
    assert sessions.read(value) is None


def test_a_guest_session_ends_when_keys_are_made(callers: tuple[KeyFile, Callers, str]) -> None:
    file, known, _ = callers
    sessions = Sessions(b"secret", known)
    session, value = sessions.begin(None)
    assert session.role == "guest" and sessions.read(value) == session
    file.create("app")
    known.refresh()
    assert sessions.read(value) is None


def test_records_from_before_there_were_roles(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    old = [{"name": "ops", "sha256": "00", "admin": True}, {"name": "app", "sha256": "11", "admin": False}]
    path.write_text(json.dumps({"keys": old}))
    assert [(c.name, c.role) for c in KeyFile(path).load()] == [("ops", "admin"), ("app", "api")]
