"""The pages in real Chromium: what people do there, with mouse, keyboard and thumb."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.service.ui.checks import check_page, colours, contrast, tab_through
from tests.service.ui.conftest import HOSTILE, NewVisit, Site

pytestmark = pytest.mark.servers("chromium")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart(theme: int) -> None:
    known = {name: pair[theme] for name, pair in colours().items()}
    grounds = ("ground", "surface", "sunken")
    texts = [(ink, ground) for ink in ("ink", "ink-soft", "accent") for ground in grounds]
    texts += [(kind, f"{kind}-wash") for kind in ("good", "warn", "bad")]
    texts += [("accent-strong", "accent-wash"), ("ink", "accent-wash"), ("ink-soft", "accent-wash")]
    texts += [("ink", f"{kind}-wash") for kind in ("good", "warn", "bad")]
    texts += [("on-accent", "accent"), ("on-accent", "accent-strong"), ("bad", "surface"), ("ground", "ink")]
    shapes = [("line-strong", ground) for ground in grounds] + [(f"arm-{n}", "surface") for n in range(1, 5)]
    low = {(a, b): contrast(known[a], known[b]) for a, b in texts if contrast(known[a], known[b]) < 4.5}
    low |= {(a, b): contrast(known[a], known[b]) for a, b in shapes if contrast(known[a], known[b]) < 3}
    assert low == {}


def test_logging_in_and_out(visit: NewVisit, site: Site) -> None:
    one = visit()
    page = one.open("login")
    check_page(page)
    page.get_by_label("Key", exact=True).fill("keel-not-a-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not known")
    page = one.log_in(site.admin)
    names = ["Playground", "Compare", "Reviews", "Experiments", "Policies"]
    assert [
        name for name in page.get_by_role("navigation").get_by_role("link").all_inner_texts() if name in names
    ] == names
    assert "keel_session" not in page.evaluate("document.cookie")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert one.log_in(site.rater).get_by_role("link", name="Policies").count() == 0


def test_playground_shows_findings_where_they_are(visit: NewVisit, site: Site) -> None:
    page = visit().log_in(site.admin, "playground")
    page.get_by_label("Policy").select_option("guarded")
    assert tab_through(page)[0].startswith("A Skip to the page")
    page.get_by_label("Message").fill("My key is AKIAIOSFODNN7EXAMPLE: where is my order?")
    page.keyboard.press("Enter")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("Whole reply")
    assert page.locator(".turn.user mark").inner_text().startswith("AKIAIOSFODNN7EXAMPLE")
    assert reply.locator("mark").count() == 2
    expect(reply.locator(".chip").first).to_have_text("Changed")
    expect(reply.locator("table")).to_contain_text("numbers")
    expect(page.get_by_label("Message")).to_be_focused()
    check_page(page)


def test_playground_shows_a_block_and_a_stop(visit: NewVisit, site: Site) -> None:
    page = visit().log_in(site.admin, "playground")
    page.get_by_label("Policy").select_option("guarded")
    page.get_by_label("Message").fill("What of Project Zephyr?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant")).to_contain_text("blocked before the model saw it")
    assert page.locator(".turn.user mark").inner_text().startswith("Project Zephyr")
    page.get_by_label("Message").fill("Answer slowly")
    page.keyboard.press("Enter")
    reply = page.get_by_role("article", name="Reply").last
    expect(reply).to_contain_text("You said")
    page.get_by_role("button", name="Stop").click()
    expect(reply).to_contain_text("Stopped")
    page.get_by_label("Message").fill("Why so angry?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Reply").last).to_contain_text("Withheld")
    check_page(page)


@pytest.mark.parametrize("policy", ["guarded", "bare"])
def test_markup_is_text(visit: NewVisit, site: Site, policy: str) -> None:
    page = visit().log_in(site.admin, "playground")
    page.get_by_label("Policy").select_option(policy)
    page.get_by_label("Message").fill(f"Say markup. {HOSTILE}")
    page.keyboard.press("Enter")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("Whole reply")
    assert HOSTILE in reply.inner_text() and HOSTILE in page.locator(".turn.user").inner_text()
    assert page.locator("main script, main img, main strong, main [href^=javascript]").count() == 0
    assert page.title() == "Playground – Keel"


def test_scripts_that_get_in_all_the_same_do_not_run(visit: NewVisit) -> None:
    one = visit()
    page = one.open("login")
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          try { script.textContent = "document.title = 'owned'"; } catch {}
          document.body.append(script);
          try { document.body.innerHTML += "<img src=x onerror=\\"document.title='owned'\\">"; } catch {}
          const style = document.createElement("style");
          document.head.append(style);
        }"""
    )
    assert page.title() == "Log in – Keel"
    assert any("Content Security Policy" in problem or "TrustedScript" in problem for problem in one.problems)
    one.problems.clear()


def test_policies_are_read_and_tried(visit: NewVisit, site: Site) -> None:
    page = visit().log_in(site.admin, "policies")
    page.get_by_role("button", name="guarded").click()
    page.get_by_label("Text").fill("Ask project zephyr about AKIAIOSFODNN7EXAMPLE")
    page.get_by_role("button", name="Examine").click()
    expect(page.locator(".try .chip").first).to_have_text("Blocked")
    assert page.locator("mark").count() == 2
    page.get_by_text("The whole policy").click()
    expect(page.locator("pre.source")).to_contain_text("guard: secrets")
    check_page(page)


@pytest.mark.parametrize("colour", ["light", "dark"])
def test_every_page_fits_a_phone(visit: NewVisit, site: Site, colour: str) -> None:
    one = visit(width=360, height=740, colour=colour)
    page = one.log_in(site.admin)
    dark = page.evaluate("getComputedStyle(document.body).color")
    for name in ["Playground", "Compare", "Reviews", "Experiments", "Policies"]:
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        page.wait_for_selector(".loading", state="hidden")
        check_page(page)
    page.get_by_role("button", name="colours").click()
    assert page.evaluate("getComputedStyle(document.body).color") != dark
    page.reload()
    page.wait_for_selector("h1")
    assert page.evaluate("getComputedStyle(document.body).color") != dark


def test_nothing_is_cut_off_at_any_width(visit: NewVisit, site: Site) -> None:
    page = visit().log_in(site.admin, "reviews")
    for width in (320, 480, 735, 737, 800, 900, 959, 961):
        page.set_viewport_size({"width": width, "height": 800})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{wide} at {width}"
