"""A model in this process as a target: a round of training can be attacked before anything serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.data.conversation import Message as Turn
from training.data.conversation import Role
from training.data.preferences import Prompt, check_prompt
from training.errors import TrainingError
from training.redteam.attack import Message
from training.redteam.target import Reply, TargetError
from training.rl.rollout import generate
from training.rl.sampling import SampleConfig

GATHERING = 0.005
"""Seconds for which a batch waits for more conversations."""


class LocalTarget:
    """Greedy replies of a causal language model; conversations that arrive together share a batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        name: str = "model",
        *,
        max_new_tokens: int = 32,
        batch: int = 32,
    ) -> None:
        self._model, self._tokenizer, self.name = model, tokenizer, name
        self._sampling = SampleConfig(max_new_tokens=max_new_tokens, temperature=0)
        self._batch = batch
        self._waiting: list[tuple[Prompt, asyncio.Future[str]]] = []
        self._serving: asyncio.Task[None] | None = None

    async def reply(self, messages: Sequence[Message]) -> Reply:
        """Raises `TargetError` for what the model's template can't hold (tool calls), or is too long."""
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((conversation(messages), answered))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return Reply(await answered)

    async def _serve(self) -> None:
        await asyncio.sleep(GATHERING)
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            try:
                texts = await asyncio.to_thread(self._generate, [prompt for prompt, _ in batch])
            except TrainingError:
                await self._one_by_one(batch)
                continue
            for (_, answered), text in zip(batch, texts, strict=True):
                answered.set_result(text)
        self._serving = None

    async def _one_by_one(self, batch: Sequence[tuple[Prompt, asyncio.Future[str]]]) -> None:
        """One of them can't be answered: the others are."""
        for prompt, answered in batch:
            try:
                answered.set_result((await asyncio.to_thread(self._generate, [prompt]))[0])
            except TrainingError as error:
                answered.set_exception(TargetError(str(error)))

    def _generate(self, prompts: list[Prompt]) -> tuple[str, ...]:
        return generate(self._model, self._tokenizer, prompts, self._sampling).texts


def conversation(messages: Sequence[Message]) -> Prompt:
    if any(message["role"] not in ("system", "user", "assistant") for message in messages):
        raise TargetError("this model's template holds no tool calls")
    try:
        return check_prompt(tuple(Turn(cast(Role, m["role"]), str(m["content"])) for m in messages))
    except ValueError as error:
        raise TargetError(str(error)) from error
