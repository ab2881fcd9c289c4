"""The simulated callers, for locust: chat, streams, long contexts, prompts to be blocked, open-loop arrivals.

Each request is recorded whole (`loadtests.record`); what locust's own table shows comes from its client.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, ClassVar

import gevent.pool
from locust import FastHttpUser, task
from locust.contrib.fasthttp import FastResponse

from loadtests.prompts import LONG_REPLY, Conversations, Message
from loadtests.record import Outcome, Recorder, Seen

DIALOGUES = 256  # that arrivals belong to, each in its turn
CHAT = "/v1/chat/completions"
_numbers = itertools.count()


class Caller(FastHttpUser):
    """What all callers share: who they are, how long they think, where their requests are written down."""

    abstract = True
    connection_timeout = 10.0
    network_timeout = 120.0
    kind: ClassVar[str] = ""
    recorder: ClassVar[Recorder]
    model: ClassVar[str] = "standard"
    think: ClassVar[float] = 0.0  # seconds between a caller's requests, in the mean
    seed: ClassVar[int] = 0
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.talk = Conversations(f"{self.seed} {self.kind} {next(_numbers)}")

    def wait_time(self) -> float:
        """Seconds until the next request."""
        return self.talk.pause(self.think)

    def ask(
        self,
        messages: list[Message],
        *,
        stream: bool = False,
        reply: int | None = None,
        due: float | None = None,
    ) -> Seen:
        """Send one request, read the whole answer and record it. `due` is when it should have gone out."""
        body = self.talk.request(self.model, messages, stream=stream, reply=reply)
        return self.send(CHAT, body, stream=stream, due=due)

    def send(self, path: str, body: Any, *, stream: bool = False, due: float | None = None) -> Seen:
        """Post JSON to a path, and record what came of it."""
        began = self.recorder.now() if due is None else due
        ttft: float | None = None
        gaps: list[float] = []
        error = ""
        with self.client.post(
            path, json=body, headers=self.headers, name=self.kind, stream=stream, catch_response=True
        ) as response:
            status = response.status_code
            if stream and status == 200:
                ttft, gaps, error = self._follow(response, began)
            content = b"" if stream and status == 200 else (response.content or b"")
            outcome, said = self.judge(status, response, content, error)
            if outcome == "failed":
                response.failure(said or f"status {status}")
            else:
                response.success()
        seen = Seen(
            round(began, 4), self.kind, (self.recorder.now() - began) * 1e3, status, outcome, ttft, gaps, said
        )
        self.recorder.add(seen)
        return seen

    def judge(self, status: int, response: FastResponse, content: bytes, error: str) -> tuple[Outcome, str]:
        """What an answer counts as, and what was wrong with it."""
        if error:
            return "failed", error
        if status in (429, 503):
            told = response.headers is not None and response.headers.get("retry-after")
            return ("refused", code_of(content)) if told else ("failed", "refused without Retry-After")
        if status != 200:
            return "failed", code_of(content) or str(getattr(response, "error", "") or f"status {status}")[
                :200
            ]
        return "ok", ""

    def _follow(self, response: FastResponse, began: float) -> tuple[float | None, list[float], str]:
        """A stream's time to first text and the gaps between texts, in ms; an error where it ended badly."""
        ttft: float | None = None
        gaps: list[float] = []
        last, done, error = 0.0, False, ""
        for line in _lines(response):
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                error = str(event["error"].get("code") or event["error"].get("type"))
            if not any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or ()):
                continue
            now = self.recorder.now()
            if ttft is None:
                ttft = (now - began) * 1e3
            else:
                gaps.append(round((now - last) * 1e3, 2))
            last = now
        return ttft, gaps, error or ("" if done else "no [DONE]")


def _lines(response: FastResponse) -> Iterator[bytes]:
    """A stream's lines as they arrive."""
    while line := response.stream.readline(b"\n"):
        yield bytes(line).rstrip()


def code_of(content: bytes) -> str:
    """The code of an error in OpenAI's form."""
    try:
        error = json.loads(content)["error"]
        return str(error.get("code") or error.get("type"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


class Chat(Caller):
    """Asks and waits for the whole reply."""

    kind = "chat"
    weight = 9

    @task
    def turn(self) -> None:
        """One request."""
        self.ask(self.talk.messages())


class Stream(Caller):
    """Reads the reply as it is written."""

    kind = "stream"
    weight = 8

    @task
    def turn(self) -> None:
        """One request."""
        self.ask(self.talk.messages(), stream=True)


class LongContext(Caller):
    """Asks about a long text."""

    kind = "long"
    weight = 2

    @task
    def turn(self) -> None:
        """One request."""
        self.ask(self.talk.long_messages(), stream=True, reply=LONG_REPLY)


class Blocked(Caller):
    """Tries to talk the model out of its instructions, and must be blocked."""

    kind = "blocked"
    weight = 1

    @task
    def turn(self) -> None:
        """One request."""
        self.ask(self.talk.attack())

    def judge(self, status: int, response: FastResponse, content: bytes, error: str) -> tuple[Outcome, str]:
        """Only a block will do."""
        if status == 400 and code_of(content) == "content_filter":
            return "ok", ""
        if status == 200:
            return "failed", "an attack was answered"
        return super().judge(status, response, content, error)


class Arrivals(Caller):
    """Requests that come when they come, whether earlier ones were answered or not: an open loop.

    Times are counted from when a request was due, so that a generator that is late hides nothing.
    """

    kind = "arrivals"
    fixed_count = 1
    concurrency = 8_192
    rate: ClassVar[float] = 0.0  # a second

    def on_start(self) -> None:
        """The first one is due now."""
        self._due = self.recorder.now()
        self._crowd = gevent.pool.Group()
        self._dialogues = itertools.cycle([Conversations(f"{self.seed} {i}") for i in range(DIALOGUES)])

    @task
    def arrive(self) -> None:
        """One of a Poisson process."""
        self._due += self.talk.pause(1 / self.rate)
        gevent.sleep(max(0.0, self._due - self.recorder.now()))
        self._crowd.spawn(self.ask, next(self._dialogues).messages().copy(), due=self._due)

    def on_stop(self) -> None:
        """Those that were sent are answered first."""
        self._crowd.join(timeout=30)
