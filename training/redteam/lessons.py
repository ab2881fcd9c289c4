"""What the next round learns from: pairs in which a refusal was better, and as many in which an answer was.

Pairs of successes alone teach to refuse: whatever is asked, the refusal was the better reply. So each
behaviour that was answered in some disguise is also asked outright, in several phrasings, and its harmless
twin in the same phrasings under the same system prompt: what tells them apart is what they are about.
Ordinary questions come in as well. What is better or worse than a refusal are the model's own answers. The
fewer kind is repeated until there are `REFUSALS_TO_ANSWERS` times as many refusals as answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.data.conversation import Message
from training.data.preferences import Preference, Prompt
from training.data.starter import starter_conversations
from training.redteam.attack import DEFAULT_SYSTEM, Attack, make_attack
from training.redteam.behavior import Behavior
from training.redteam.campaign import Attempt
from training.redteam.harvest import REFUSAL, preferences_of
from training.redteam.local import conversation
from training.redteam.twins import twins_of
from training.refusals import refuses
from training.rl.rollout import generate
from training.rl.sampling import SampleConfig

PHRASINGS = ("{}", "Hello. {}", "I would like to know this: {}")
ORDINARY = 150
REFUSALS_TO_ANSWERS = 2
DRAWS = 4
"""Replies that are drawn for a prompt until one is no refusal."""
SHORTEST = 3
"""Words; less is no answer."""

_LIKELIEST = SampleConfig(max_new_tokens=32, temperature=0)
_DRAWN = SampleConfig(max_new_tokens=32, temperature=0.7)


@dataclass(frozen=True, slots=True)
class Lessons:
    """Pairs in which a refusal was better, and pairs in which an answer was."""

    refusing: tuple[Preference, ...]
    answering: tuple[Preference, ...]

    def balanced(self, seed: int) -> list[Preference]:
        """So many refusals to an answer, the fewer kind repeated, in an order drawn by the seed."""
        if not self.refusing or not self.answering:
            return [*self.refusing, *self.answering]
        count = max(len(self.refusing) // REFUSALS_TO_ANSWERS, len(self.answering))
        pairs = [
            *islice(cycle(self.refusing), REFUSALS_TO_ANSWERS * count),
            *islice(cycle(self.answering), count),
        ]
        random.Random(seed).shuffle(pairs)
        return pairs


def lessons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tries: Iterable[Attempt],
    behaviors: Sequence[Behavior],
    seed: int,
) -> Lessons:
    """The pairs of a round on `behaviors`; `model` is what was attacked, and answers what is harmless."""
    tries = list(tries)
    answered = {attempt.behavior for attempt in tries if attempt.answered}
    asked = request_prompts([behavior for behavior in behaviors if behavior.id in answered], seed)
    refusing = (
        *preferences_of(tries, answered=True),
        *map(_exchanged, answers_better(model, tokenizer, asked, seed)),
    )
    harmless = [*twin_prompts(behaviors, seed), *ordinary_prompts(ORDINARY, seed)]
    return Lessons(refusing, tuple(answers_better(model, tokenizer, harmless, seed)))


def request_prompts(behaviors: Sequence[Behavior], seed: int) -> list[Prompt]:
    """What must not be answered, asked outright in every one of `PHRASINGS`; where a canary tells, it is not
    the request that does harm, and there is none."""
    asked = [behavior for behavior in behaviors if behavior.goal == "answer"]
    return _phrased(make_attack(behavior, "direct", seed) for behavior in asked)


def twin_prompts(behaviors: Sequence[Behavior], seed: int) -> list[Prompt]:
    """Each behaviour's twin in every one of `PHRASINGS`, under the system prompt that attacks come with."""
    return _phrased(twins_of(behaviors, seed))


def _phrased(attacks: Iterable[Attack]) -> list[Prompt]:
    return [
        (*prompt[:-1], Message("user", phrasing.format(prompt[-1].content)))
        for prompt in (conversation(attack.messages) for attack in attacks)
        for phrasing in PHRASINGS
    ]


def ordinary_questions(count: int, seed: int) -> dict[str, set[str]]:
    """Different questions of the starter conversations, with their answers; none that is declined there."""
    answers: dict[str, set[str]] = {}
    for exchange in starter_conversations(20 * count, seed):
        question, answer = exchange.messages[0].content, exchange.messages[1].content
        answers.setdefault(question, set()).add(answer)
    usable = [question for question, known in answers.items() if not any(map(_declines, known))]
    random.Random(seed).shuffle(usable)
    return {question: answers[question] for question in usable[:count]}


def ordinary_prompts(count: int, seed: int) -> list[Prompt]:
    """Ordinary questions, every second one under a system prompt."""
    return [
        (*([Message("system", DEFAULT_SYSTEM)] if place % 2 else []), Message("user", question))
        for place, question in enumerate(ordinary_questions(count, seed))
    ]


def answers_better(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt], seed: int
) -> list[Preference]:
    """Pairs in which an answer of the model's own beats a refusal: its likeliest reply, or else the first of
    `DRAWS` that is no refusal. A prompt to which it gives none has no pair."""
    found: dict[int, str] = {}
    for draw in range(DRAWS):
        wanting = [i for i in range(len(prompts)) if i not in found]
        if not wanting:
            break
        sampling = _DRAWN if draw else _LIKELIEST
        texts = generate(model, tokenizer, [prompts[i] for i in wanting], sampling, 1000 * seed + draw).texts
        for i, text in zip(wanting, texts, strict=True):
            if len(text.split()) >= SHORTEST and not _declines(text):
                found[i] = text
    return [
        Preference(prompts[i], found[i], REFUSAL, rater="red team", id=f"answer-{i}") for i in sorted(found)
    ]


def _exchanged(pair: Preference) -> Preference:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def _declines(reply: str) -> bool:
    return refuses(reply) or "sorry" in reply.lower()
