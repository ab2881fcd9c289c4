"""A judge that is asked over HTTP: any OpenAI-compatible model, with answers of a fixed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Self, TypeVar

from pydantic import Field

from policies.constitution import Constitution
from policies.critique import MAX_EVIDENCE, Critique, Messages, critique_schema
from training.data.preferences import Prompt
from training.judge.client import Answer, ChatClient, JudgeError, ServerConfig, UnreadableAnswer
from training.judge.critique import (
    compare_messages,
    critique_messages,
    read_critique,
    read_revision,
    revise_messages,
    revision_schema,
)
from training.judge.verdict import LETTERS, probability_of_a, read_verdict, verdict_schema

_T = TypeVar("_T")
_TOP_LOGPROBS = 20  # as many as OpenAI's API gives


class JudgeConfig(ServerConfig):
    """`labels` says where the probability of a verdict comes from: the log-probabilities of its letter, the
    share of `votes` answers drawn at temperature 1, or, by default, the first where the server gives them.

    An answer that can't be read is asked for again, `attempts` times in all, and then is an error.
    """

    labels: Literal["auto", "logprobs", "votes"] = "auto"
    votes: int = Field(default=5, ge=1)
    reasoning: bool = False
    attempts: int = Field(default=3, ge=1)
    longest_revision: int = Field(default=2_000, ge=1)
    seed: int = 0


class RemoteJudge:
    """Asks the server that `config` names; close it, or use it in a `with`. Safe to use from many threads."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self._client = ChatClient(config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def compare(self, prompt: Prompt, a: str, b: str, criterion: str | None = None) -> float:
        """See `Judge.compare`. Raises JudgeError."""
        messages = compare_messages(prompt, a, b, criterion, self.config.reasoning)
        if self.config.labels != "votes":
            schema = verdict_schema(self.config.reasoning)
            p = self._ask(messages, schema, probability_of_a, top_logprobs=_TOP_LOGPROBS)
            if p is not None:
                return p
            if self.config.labels == "logprobs":
                raise JudgeError(f"{self.config.base_url}: gives no log-probabilities; set labels: votes")
        return self._vote(messages)

    def critique(self, prompt: Prompt, reply: str, constitution: Constitution) -> Critique:
        """See `Judge.critique`. Raises JudgeError."""
        messages = critique_messages(prompt, reply, constitution)
        read = partial(read_critique, constitution=constitution)
        return self._ask(messages, critique_schema(constitution, MAX_EVIDENCE), read)

    def revise(self, prompt: Prompt, reply: str, constitution: Constitution, critique: Critique) -> str:
        """See `Judge.revise`. Raises JudgeError."""
        messages = revise_messages(prompt, reply, constitution, critique)
        return self._ask(messages, revision_schema(self.config.longest_revision), read_revision)

    def _vote(self, messages: Messages) -> float:
        """The share of A among `votes` answers; one that can't be read is an error, not a vote."""
        schema = verdict_schema(self.config.reasoning)
        seeds = range(self.config.seed, self.config.seed + self.config.votes)
        letters = [self._ask(messages, schema, read_verdict, temperature=1.0, seed=seed) for seed in seeds]
        return letters.count(LETTERS[0]) / len(letters)

    def _ask(
        self,
        messages: Messages,
        schema: Mapping[str, Any],
        read: Callable[[Answer], _T],
        *,
        temperature: float = 0.0,
        seed: int | None = None,
        top_logprobs: int = 0,
    ) -> _T:
        """What `read` makes of the answer; asked again, and less rigidly, where it can't read it.

        White space may stand between the parts of any JSON, and a weak model at temperature 0 can write
        nothing else for ever. The first attempt is cut short there; later ones make repetition costly.
        """
        for attempt in range(self.config.attempts):
            again = attempt > 0
            try:
                answer = self._client.chat(
                    messages,
                    schema=schema,
                    temperature=max(temperature, 0.7) if again else temperature,
                    seed=(self.config.seed if seed is None else seed) + 1_000_003 * attempt,
                    top_logprobs=top_logprobs,
                    frequency_penalty=1.0 if again else 0.0,
                    stop=None if again else "\n\n\n",
                )
                return read(answer)
            except UnreadableAnswer:
                if attempt == self.config.attempts - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")
