"""What a policy's output guards say about a reply that nobody has been given yet.

The reply that is chosen in the end is moderated on its way out like any other; this is how candidates are
looked at before. Nothing is counted here: a metric counts what the caller gets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from guardrails.guard import Context, JobRunner
from guardrails.moderate import ChannelKey, ChoiceEnd, ChoiceEnded, Delta, moderate
from guardrails.stream import Moderator
from guardrails.verdict import Verdict
from service.alignment.strategy import Payload
from service.generation import Generation
from service.openai.channels import ChoiceState
from service.release import SHAPES
from service.request import Examined


@dataclass(slots=True)
class Inspected:
    """One choice: what was found in it, by channel, and whether any of it would be withheld.

    `released` is the content that would go out.
    """

    withheld: bool = False
    released: str = ""
    verdicts: list[tuple[str, Verdict]] = field(default_factory=list)

    @property
    def flagged(self) -> bool:
        """Whether a guard found anything, whatever its action, or failed to look."""
        return self.withheld or any(verdict.findings or verdict.failures for _, verdict in self.verdicts)

    @property
    def penalty(self) -> float:
        """What the soft constraints take off its score: for each guard and category the highest reached."""
        highest: dict[tuple[str, str], float] = {}
        for finding in (finding for _, verdict in self.verdicts for finding in verdict.findings):
            kind = (finding.guard, finding.entity_type)
            highest[kind] = max(finding.penalty, highest.get(kind, 0.0))
        return sum(highest.values())


async def inspect_choices(
    payload: Payload, generation: Generation, examined: Examined, runner: JobRunner
) -> dict[int, Inspected]:
    """The output guards' word on each choice of `payload`, by the choice's index."""
    shape = SHAPES[generation.kind]
    states = {choice.get("index", 0): ChoiceState(choice.get("index", 0)) for choice in payload["choices"]}
    seen = {index: Inspected() for index in states}
    moderators: dict[ChannelKey, Moderator] = {}

    def open_channel(key: ChannelKey) -> Moderator:
        called = states[key.choice].tool_name(key.tool_call) if key.tool_call is not None else None
        context = Context(
            "output",
            "assistant",
            key.channel,
            examined.prompt,
            called,
            generation.payload.get("tools") or (),
            examined.turns,
        )
        moderators[key] = Moderator(generation.served.guards.output, context)
        return moderators[key]

    async def whole() -> AsyncIterator[Sequence[Delta | ChoiceEnd]]:
        deltas: list[Delta | ChoiceEnd] = []
        for choice in payload["choices"]:
            index = choice.get("index", 0)
            deltas += [*shape.take_apart(states[index], choice), ChoiceEnd(index)]
        yield deltas

    async with aclosing(moderate(whole(), open_channel, runner, choices=len(states))) as batches:
        async for batch in batches:
            for item in batch:
                if isinstance(item, ChoiceEnded):
                    seen[item.choice].withheld |= item.withheld is not None
                elif item.key.channel == "content":
                    seen[item.key.choice].released += item.text
    for key, moderator in moderators.items():
        seen[key.choice].verdicts.append((key.channel, moderator.verdict))
    return seen
