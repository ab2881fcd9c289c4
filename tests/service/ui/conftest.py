"""One gateway, one Chromium, shared by all tests of the pages; each test has a browser context of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from service.auth import KeyFile
from service.pairing import pair_row
from service.store import comparisons
from service.store.database import Database
from service.store.reviews import reviews
from service.store.writer import insert_rows
from tests.fakes.upstream import DONE, Exchange, FakeUpstream, event
from tests.service.threaded import threaded_gateway

ADMIN = "keel-admin-key-0123456789"
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    " [a](javascript:alert(1)) **bold**"
)
MODEL = 'model: {upstream: {base_url: "%s/v1", model: fake}}\n'
POLICIES = {
    "guarded": """description: Secrets are cut out, Project Zephyr is blocked, anger goes to review.
input:
  - {guard: secrets, action: mask}
  - {guard: patterns, label: project, patterns: ['(?i)project zephyr'], action: block}
output:
  - {guard: patterns, label: numbers, patterns: [{name: order_number, regex: '[0-9]{6}'}], action: redact}
  - {guard: patterns, label: angry, words: [scoundrel], action: escalate}
feedback: {}
review: {}
""",
    "bare": "description: No guards at all.\n",
}
EXPERIMENT = """name: trial
description: Do guards cost anything?
arms: [{name: old, policy: bare}, {name: new, policy: guarded}]
window_s: 0.5
every_s: 1
metrics: [block_rate, tokens_out, duration_p50]
ramp: {arm: new, steps: [50, 100], min_units: 100000, approve: [100]}
limits: [{metric: block_rate, max: 0.9}]
"""
_ids = itertools.count(1)


async def engine(exchange: Exchange) -> None:
    """Answers by what was asked, under an id of its own."""
    if exchange.request.method == "GET":
        await exchange.reply(200, b'{"object":"list","data":[]}')
        return
    body = exchange.request.json
    text = reply_to(body["messages"][-1]["content"])
    head = {"id": f"chatcmpl-{next(_ids):06d}", "created": 1, "model": "fake"}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": len(text.split()),
        "total_tokens": 9 + len(text.split()),
    }
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        reply = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        await exchange.reply(200, json.dumps(reply).encode())
        return
    await exchange.sse_head()
    slow = 0.4 if "slowly" in body["messages"][-1]["content"] else 0.004
    for word in text.split(" "):
        choice = {"index": 0, "delta": {"content": word + " "}, "finish_reason": None}
        await exchange.chunk(event({**head, "object": "chat.completion.chunk", "choices": [choice]}))
        await asyncio.sleep(slow)
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    await exchange.chunk(event({**head, "object": "chat.completion.chunk", "choices": [end], "usage": usage}))
    await exchange.chunk(DONE)
    await exchange.end()


def reply_to(prompt: str) -> str:
    if "markup" in prompt:
        return HOSTILE
    if "order" in prompt:
        return "Your order 123456 is on its way, and so is 654321."
    if "angry" in prompt:
        return "You are a scoundrel, sir."
    return f"You said: {prompt}. That is a fine thing to say, and here is a little more about it."


@dataclass(frozen=True)
class Site:
    """The gateway and the keys to it."""

    url: str
    rater: str
    second_rater: str
    admin: str = ADMIN

    def post(self, path: str, body: Any, key: str = ADMIN) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers={"authorization": f"Bearer {key}"})

    def get(self, path: str, key: str = ADMIN) -> httpx.Response:
        return httpx.get(self.url + path, headers={"authorization": f"Bearer {key}"})


@contextlib.contextmanager
def threaded_upstream() -> Iterator[str]:
    up, stop, urls = threading.Event(), threading.Event(), list[str]()

    async def serve() -> None:
        async with FakeUpstream(engine) as upstream:
            urls.append(upstream.base_url)
            up.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    up.wait()
    yield urls[0]
    stop.set()
    thread.join()


def withheld() -> dict[str, Any]:
    """A reply that waits for review, the oldest."""
    text = f"You are a scoundrel, {HOSTILE}"
    finding = {
        "guard": "angry",
        "kind": "patterns",
        "entity_type": "WORD",
        "score": 1.0,
        "action": "escalate",
    }
    at = text.index("scoundrel")
    return {
        "id": "rev-first",
        "at": 1.0,
        "policy": "guarded",
        "policy_digest": "d" * 64,
        "checkpoint": "fake",
        "completion_id": "chatcmpl-000000",
        "request_id": "req-first",
        "stage": "output",
        "action": "escalate",
        "findings": [{**finding, "start": at, "end": at + 9}],
        "prompt": [{"role": "user", "content": f"Why so angry? {HOSTILE}"}],
        "text": text,
        "status": "open",
    }


async def fill_store(url: str) -> None:
    """Pairs to compare, and an item to review that was kept with its text; markup in both."""
    database = Database(url)
    pairs = [("Name a colour.", "Blue.", "Monday."), ("Say something.", HOSTILE, "Something.")]
    pairs.append(("What is two and two?\nThink first.", "Four. " * 60, "Five."))
    rows = [pair_row([{"role": "user", "content": p}], a, b, "import") for p, a, b in pairs]
    async with database.change() as connection:
        await insert_rows(connection, comparisons.pairs, rows)
        await insert_rows(connection, reviews, [withheld()])
    await database.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("ui")
    keys = KeyFile(folder / "state" / "keys.json")
    raters = [keys.create(name, role="rater") for name in ("ada", "bea")]
    with threaded_upstream() as upstream:
        policies = {name: MODEL % upstream + text for name, text in POLICIES.items()}
        experiments = tmp_path_factory.mktemp("experiments")
        (experiments / "trial.yaml").write_text(EXPERIMENT)
        settings = {"checkpoints": folder / "checkpoints", "admin_key": ADMIN, "experiments": [experiments]}
        asyncio.run(fill_store(f"sqlite:///{folder / 'state' / 'keel.db'}"))
        with threaded_gateway(folder, policies, **settings) as url:
            yield Site(url, *raters)


# Not for the whole session: while it lives, its event loop runs in this thread, and no async test can.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        yield chromium
        chromium.close()


class Visit:
    """One person at one browser. What a page logs as an error or the policy forbids fails the test."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _console(self, message: Any) -> None:
        # An answer of 4xx is logged by the browser itself; the pages show it, and tests look there.
        if message.type == "error" and "the server responded with a status of" not in message.text:
            self.problems.append(message.text)

    def open(self, path: str = "") -> Page:
        self.page.goto(f"{self.url}/ui/{path}")
        self.page.wait_for_selector("h1")
        return self.page

    def log_in(self, key: str, path: str = "") -> Page:
        self.open("login")
        self.page.get_by_label("Key", exact=True).fill(key)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(lambda url: not url.endswith("/login"))
        self.page.wait_for_selector("h1")
        return self.open(path) if path else self.page


NewVisit = Callable[..., Visit]


@pytest.fixture
def visit(site: Site, browser: Browser) -> Iterator[NewVisit]:
    """`visit(width=…, colour=…)` opens a fresh browser profile."""
    contexts: list[BrowserContext] = []
    visits: list[Visit] = []

    def new(width: int = 1280, height: int = 860, colour: str = "light") -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if colour == "dark" else "light",
            has_touch=width < 500,
            reduced_motion="reduce",
        )
        context.set_default_timeout(8_000)
        contexts.append(context)
        visits.append(Visit(context.new_page(), site.url))
        return visits[-1]

    yield new
    for context in contexts:
        context.close()
    for one in visits:
        assert one.problems == []
        assert [url for url in one.requests if not url.startswith(site.url)] == []
