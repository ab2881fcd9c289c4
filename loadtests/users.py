"""The simulated callers, for locust: chat, streams, long contexts, feedback, prompts to be blocked, arrivals.

Each request is recorded whole (`loadtests.record`); what locust's own table shows comes from its client.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

import gevent.pool
from locust import FastHttpUser, task
from locust.contrib.fasthttp import FastResponse

from loadtests.prompts import LONG_REPLY, Conversations, Message
from loadtests.record import Outcome, Recorder, Seen

DIALOGUES = 256  # as many wait for their turn; an arrival goes on with the one that has waited longest
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
        self.completion_id = ""  # of the last whole reply

    def wait_time(self) -> float:
        """Seconds until the next request."""
        return self.talk.pause(self.think)

    def ask(
        self,
        messages: list[Message],
        *,
        stream: bool = False,
        reply: int | None = None,
        late_ms: float = 0.0,
    ) -> Seen:
        """Send one request, read the whole answer and record it; `late_ms` is how late it goes out."""
        body = self.talk.request(self.model, messages, stream=stream, reply=reply)
        return self.send(CHAT, body, stream=stream, late_ms=late_ms)

    def send(
        self, path: str, body: Any, *, stream: bool = False, late_ms: float = 0.0, kind: str = ""
    ) -> Seen:
        """Post JSON to a path, and record what came of it, under another `kind` where one is given."""
        began = self.recorder.now()
        ttft: float | None = None
        gaps: list[float] = []
        error = ""
        with self.client.post(
            path, json=body, headers=self.headers, name=kind or self.kind, stream=stream, catch_response=True
        ) as response:
            status = response.status_code
            if stream and status == 200:
                ttft, gaps, error = self._follow(response, began)
            content = b"" if stream and status == 200 else (response.content or b"")
            outcome, said = self.judge(status, response, content, error)
            if status == 200 and content:
                self.completion_id = json.loads(content).get("id", "")
            if outcome == "failed":
                response.failure(said or f"status {status}")
            else:
                response.success()
        ms = (self.recorder.now() - began) * 1e3
        seen = Seen(round(began, 4), kind or self.kind, ms, status, outcome, ttft, gaps, said, late_ms)
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
            said = error_of(content) or str(getattr(response, "error", "")) or f"status {status}"
            return "failed", said[:200]
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
    """The code of an error in OpenAI's form; empty where it is none."""
    return error_of(content).partition(":")[0]


def error_of(content: bytes) -> str:
    """Its code and message: which guard blocked is in the latter."""
    try:
        error = json.loads(content)["error"]
        return f"{error.get('code') or error.get('type')}: {error.get('message')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


class Chat(Caller):
    """Asks and waits for the whole reply."""

    kind = "chat"
    weight = 8

    @task
    def turn(self) -> None:
        """One request."""
        if self.ask(self.talk.messages()).outcome != "refused":
            self.talk.answered()


class Stream(Caller):
    """Reads the reply as it is written."""

    kind = "stream"
    weight = 7

    @task
    def turn(self) -> None:
        """One request."""
        if self.ask(self.talk.messages(), stream=True).outcome != "refused":
            self.talk.answered()


class LongContext(Caller):
    """Asks about a long text."""

    kind = "long"
    weight = 2

    @task
    def turn(self) -> None:
        """One request."""
        self.ask(self.talk.long_messages(), stream=True, reply=LONG_REPLY)


class Feedback(Caller):
    """Asks, and says what they think of each reply."""

    kind = "rated"
    weight = 2

    @task
    def turn(self) -> None:
        """One request, and a thumb for its reply."""
        if self.ask(self.talk.messages()).outcome == "ok":
            self.talk.answered()
            thumb = self.talk.choice(("up", "down"))
            said = {"completion_id": self.completion_id, "thumb": thumb}
            self.send("/v1/feedback", said, kind="feedback")


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
    """Requests that come when they come, whether earlier ones were answered or not: an open loop."""

    kind = "arrivals"
    fixed_count = 1
    concurrency = 8_192
    rate: ClassVar[float] = 0.0  # a second

    def on_start(self) -> None:
        """The first one is due now."""
        self._due = self.recorder.now()
        self._crowd = gevent.pool.Group()
        self._idle: deque[Conversations] = deque()  # dialogues that wait for nothing
        self._begun = 0

    @task
    def arrive(self) -> None:
        """One of a Poisson process."""
        self._due += self.talk.pause(1 / self.rate)
        gevent.sleep(max(0.0, self._due - self.recorder.now()))
        self._crowd.spawn(self._turn, self._due)

    def _turn(self, due: float) -> None:
        """The next turn of a dialogue, or the same again of one that was refused."""
        if len(self._idle) < DIALOGUES:
            self._begun += 1
            self._idle.append(Conversations(f"{self.seed} arrivals {self._begun}"))
        talk = self._idle.popleft()
        late_ms = round((self.recorder.now() - due) * 1e3, 2)
        if self.ask(talk.messages(), late_ms=late_ms).outcome != "refused":
            talk.answered()
        self._idle.append(talk)

    def on_stop(self) -> None:
        """Those that were sent are answered first."""
        self._crowd.join(timeout=30)
