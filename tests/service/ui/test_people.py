"""Raters and reviewers in real Chromium."""

from __future__ import annotations

import json
import re
import time

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.service.ui.checks import check_page, tab_through
from tests.service.ui.conftest import HOSTILE, NewVisit, Site

pytestmark = pytest.mark.servers("chromium")


def judgements(site: Site) -> int:
    found: int = site.get("/admin/v1/feedback").json()["judgements"]
    return found


def blocked(site: Site, prompt: str) -> None:
    """Have a guard withhold something, and wait until it waits for a person."""
    before = site.get("/admin/v1/reviews").json()["open"]
    body = {"model": "guarded", "messages": [{"role": "user", "content": prompt}]}
    site.post("/v1/chat/completions", body)
    for _ in range(400):
        if site.get("/admin/v1/reviews").json()["open"] > before:
            return
        time.sleep(0.05)
    raise AssertionError("nothing came into the queue")


def chosen(page: Page) -> str:
    return page.locator(".prompt .said").inner_text()


def test_comparing_with_the_keyboard(visit: NewVisit, site: Site) -> None:
    page = visit().log_in(site.rater)
    expect(page.get_by_role("article")).to_have_count(2)
    check_page(page)
    assert page.locator("main script, main img").count() == 0
    before, first = judgements(site), chosen(page)
    assert any("A is much better" in name for name in tab_through(page))
    page.keyboard.press("1")
    expect(page.get_by_role("status").filter(has_text="judged")).to_have_text("1 judged")
    expect(page.locator(".prompt .said")).not_to_have_text(first)
    assert judgements(site) == before + 1
    page.keyboard.press("z")  # the first one again, to think better of it
    expect(page.locator(".prompt .said")).to_have_text(first)
    page.keyboard.press("4")
    expect(page.locator(".prompt .said")).not_to_have_text(first)
    assert judgements(site) == before + 1
    page.keyboard.press("s")
    page.get_by_role("dialog").get_by_label("I can't tell what was asked").check()
    check_page(page)
    page.get_by_role("dialog").get_by_role("button", name="Skip").click()
    expect(page.get_by_role("status").filter(has_text="judged")).to_have_text("2 judged")
    page.get_by_role("button", name="B is better").click()
    expect(page.get_by_role("heading", name="All done")).to_be_visible()
    summary = site.get("/admin/v1/feedback").json()
    assert (summary["judgements"], summary["skipped"]) == (before + 3, 1)
    check_page(page)


def test_comparing_on_a_phone(visit: NewVisit, site: Site) -> None:
    page = visit(width=360, height=740, colour="dark").log_in(site.second_rater)
    expect(page.get_by_role("article")).to_have_count(2)
    check_page(page)
    page.get_by_role("button", name="A is a little better").tap()
    expect(page.get_by_role("status").filter(has_text="judged")).to_have_text("1 judged")


def test_sides_are_drawn_by_lot(site: Site) -> None:
    seen = {site.get("/v1/comparisons/next", site.admin).json()["pair"]["left"] for _ in range(24)}
    assert seen == {"first", "second"}  # by chance not so in one of eight million runs


def test_reviewing(visit: NewVisit, site: Site) -> None:
    blocked(site, "What of project zephyr?")
    page = visit().log_in(site.admin, "reviews")
    waiting = page.locator(".page-head .chip")
    expect(waiting).to_contain_text("wait")
    count = int(waiting.inner_text().split()[0])
    check_page(page)
    assert any(name.startswith("BUTTON Uphold") for name in tab_through(page))
    expect(page.locator(".split mark")).to_contain_text("scoundrel")
    assert page.locator("main").inner_text().count(HOSTILE) == 2
    assert page.locator("main script, main img").count() == 0
    page.get_by_label("A note, if you like").fill("That was fine.")
    page.locator("h1").click()  # out of the field: keys are shortcuts again
    page.keyboard.press("o")
    expect(waiting).to_contain_text(f"{count - 1} ")
    page.keyboard.press("u")
    if count > 2:
        expect(waiting).to_contain_text(f"{count - 2} ")
    page.get_by_role("button", name="Overturned").click()
    expect(page.locator(".pairs")).to_contain_text("overturned by admin:settings-admin")
    assert page.get_by_label("A note, if you like").input_value() == "That was fine."
    check_page(page)
    page.get_by_role("button", name="Put it back").click()
    page.get_by_role("button", name="Waiting").click()
    expect(waiting).to_contain_text(f"{count - 1} ")
    items = site.get("/admin/v1/reviews?status=upheld").json()["items"]
    assert [item["decided_by"] for item in items][:1] == ["admin:settings-admin"]


def test_a_reviewer_who_comes_second_is_told(visit: NewVisit, site: Site) -> None:
    blocked(site, "Again project zephyr?")
    page = visit(width=360, height=740).log_in(site.admin, "reviews")
    expect(page.get_by_role("button", name="Uphold")).to_be_visible()
    check_page(page)
    item = site.get("/admin/v1/reviews").json()["items"][0]
    assert site.post(f"/admin/v1/reviews/{item['id']}", {"decision": "overturned"}).status_code == 200
    page.get_by_role("button", name="Uphold").tap()
    expect(page.locator(".toast")).to_contain_text("it is overturned already")


def test_a_key_that_is_held_down_decides_once(visit: NewVisit, site: Site) -> None:
    for number in range(3):
        blocked(site, f"Project zephyr, {number}.")
    page = visit().log_in(site.admin, "reviews")
    waiting = page.locator(".page-head .chip")
    expect(waiting).to_contain_text(re.compile(r"[0-9]"))
    count = int(waiting.inner_text().split()[0])
    page.keyboard.down("o")
    expect(waiting).to_contain_text(f"{count - 1} ")
    for _ in range(3):
        page.keyboard.down("o")  # the keyboard's own repetition
    page.keyboard.up("o")
    page.keyboard.press("u")
    expect(waiting).to_contain_text(f"{count - 2} ")
    assert site.get("/admin/v1/reviews").json()["open"] == count - 2


def test_experiments_are_seen_and_decided_about(visit: NewVisit, site: Site) -> None:
    message = {"model": "trial", "messages": [{"role": "user", "content": "Hello"}]}
    for number in range(24):
        headers = {"authorization": f"Bearer {site.admin}", "x-session-id": f"session {number}"}
        assert httpx.post(f"{site.url}/v1/chat/completions", json=message, headers=headers).status_code == 200
    for _ in range(200):
        look = site.get("/admin/v1/experiments/trial").json()["look"]
        if look and all(arm["units"] for arm in look["arms"]):
            break
        time.sleep(0.1)
    page = visit().log_in(site.admin, "experiments")
    expect(page.locator("svg.chart")).to_have_count(2)
    arms = page.locator("svg.chart").last.locator("[class*=arm-]")
    assert {re.sub(".*(arm-.)", r"\1", str(one.get_attribute("class"))) for one in arms.all()} == {"arm-2"}
    expect(page.get_by_role("listitem").filter(has_text="control")).to_contain_text("old")
    check_page(page)
    page.get_by_label("Metric").select_option("tokens_out")
    expect(page.locator("svg.chart").first).to_have_attribute(
        "aria-label", re.compile("^tokens out over time")
    )
    state = page.locator("h2 + .chip")
    for button, reason, becomes in [
        ("Roll back", "It was a test.", "rolled back"),
        ("Begin anew", "", "running"),
        ("Promote", "It is good.", "promoted"),
    ]:
        page.get_by_role("button", name=button).click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Why").fill(reason)
        dialog.get_by_role("button", name=button).click()
        expect(state).to_have_text(becomes)
    page.get_by_text("History").click()
    expect(page.locator("main")).to_contain_text("It was a test.")
    check_page(page)


def test_experiments_that_were_applied_are_seen_too(visit: NewVisit, site: Site) -> None:
    arms = [{"name": "control", "policy": "bare"}, {"name": "new", "policy": "guarded"}]
    made = {"name": "applied", "arms": arms, "description": "Made without a file."}
    headers = {"authorization": f"Bearer {site.admin}"}
    where = f"{site.url}/admin/v1/experiments/applied"
    assert httpx.put(where, json=made, headers=headers).status_code == 201
    page = visit(width=360, height=740).log_in(site.admin, "experiments")
    page.get_by_role("button", name="applied").tap()
    expect(page.locator("main")).to_contain_text("Made without a file.")
    expect(page.locator("main")).to_contain_text("Applied by the admin API.")
    check_page(page)
    late: list[Route] = []
    page.route("**/admin/v1/experiments/trial", lambda route: late.append(route))
    with page.expect_request("**/admin/v1/experiments/trial"):
        page.get_by_role("button", name="trial").tap()
    page.get_by_role("button", name="applied").tap()
    expect(page.locator("main")).to_contain_text("Made without a file.")
    with page.expect_response("**/admin/v1/experiments/trial"):
        late[0].continue_()
    page.wait_for_timeout(100)
    expect(page.locator("main h2").first).to_have_text("applied")
    assert httpx.delete(where, headers=headers).status_code == 200


def test_a_reply_that_is_cut_off_is_no_whole_one(visit: NewVisit, site: Site) -> None:
    page = visit().log_in(site.admin, "playground")
    chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": "Half a rep"}}]}
    body = f"data: {json.dumps(chunk)}\n\n"
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )
    page.get_by_label("Message").fill("Hello")
    page.keyboard.press("Enter")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("Half a rep")
    expect(reply).to_contain_text("The connection was lost")


def test_thumbs_in_the_playground(visit: NewVisit, site: Site) -> None:
    page = visit().log_in(site.admin, "playground")
    page.get_by_label("Policy").select_option("guarded")
    page.get_by_label("Message").fill("Hello")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Good reply").click()
    expect(page.locator(".toast")).to_contain_text("stored")
    expect(page.get_by_role("button", name="Good reply")).to_have_attribute("aria-pressed", "true")
    assert site.get("/admin/v1/feedback").json()["thumbs"]["judged"] >= 1
    assert json.loads(page.evaluate("JSON.stringify(sessionStorage)")) == {}
