"""Whole replies through the driver: channels, attachments, jobs beside the upstream, ends and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.guard import Context, JobError
from guardrails.moderate import READ_AHEAD, ChannelKey, ChoiceEnd, ChoiceEnded, Delta, Piece, moderate
from guardrails.stream import Moderator
from guardrails.verdict import Action, Failure
from tests.guardrails.reference import moderated
from tests.guardrails.scripted import Rule, RuleGuard, cases
from tests.guardrails.test_stream_contract import guard_sets, texts

BLOCK = Rule("bad", Action.BLOCK)
CONTENT = ChannelKey()
Events = Sequence[Delta | ChoiceEnd]


class Runner:
    """Answers as the scripted guards' servables would, when `gates` let it, after some turns of the loop."""

    def __init__(self, guards: Sequence[RuleGuard], turns: Sequence[int] = (0,)) -> None:
        self.guards = {guard.name: guard for guard in guards}
        self.turns = turns
        self.started = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, servable: str, payload: Any, timeout: float) -> Any:
        turns = self.turns[self.started % len(self.turns)]
        self.started += 1
        try:
            await self.gate.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.guards[servable].predict(payload)


class Upstream:
    """Batches of deltas; counts how many were read, and may pause after each."""

    def __init__(self, batches: Sequence[Events], error: Exception | None = None) -> None:
        self.batches, self.error = batches, error
        self.read = 0
        self.pauses: dict[int, asyncio.Event] = {}

    async def __aiter__(self) -> AsyncIterator[Events]:
        for index, batch in enumerate(self.batches):
            if index in self.pauses:
                await self.pauses[index].wait()
            self.read += 1
            yield batch
        if self.error is not None:
            raise self.error


class Reply:
    """What came out of `moderate`, put together as a client would."""

    def __init__(self) -> None:
        self.texts: dict[ChannelKey, str] = {}
        self.attachments: list[Any] = []
        self.ended: dict[int, ChoiceEnded] = {}

    def add(self, batch: Sequence[Piece | ChoiceEnded]) -> None:
        assert batch, "an empty batch is no news"
        for event in batch:
            if isinstance(event, ChoiceEnded):
                assert event.choice not in self.ended
                self.ended[event.choice] = event
            else:
                assert event.key.choice not in self.ended, "nothing follows a choice's end"
                self.texts[event.key] = self.texts.get(event.key, "") + event.text
                self.attachments += event.attachments

    @classmethod
    async def collect(
        cls, upstream: Upstream, guards: Sequence[RuleGuard], runner: Runner, choices: int = 1
    ) -> Reply:
        reply = cls()
        moderators = open_channel(guards)
        async for batch in moderate(aiter(upstream), moderators, runner, choices=choices):
            reply.add(batch)
        return reply


def open_channel(guards: Sequence[RuleGuard]) -> Any:
    return lambda key: Moderator(guards, Context(channel=key.channel))


def words(text: str, key: ChannelKey = CONTENT) -> list[list[Delta]]:
    return [[Delta(key, word + " ", attachment=word)] for word in text.split()]


keys = st.builds(
    ChannelKey, st.integers(0, 1), st.sampled_from(["content", "reasoning", "refusal"]), st.none()
)


@st.composite
def replies(draw: st.DrawFn) -> tuple[list[Events], dict[ChannelKey, str]]:
    """Batches with several channels' deltas mixed, and each channel's whole text."""
    whole: dict[ChannelKey, str] = {}
    batches: list[Events] = []
    for _ in range(draw(st.integers(1, 6))):
        batch = []
        for key in draw(st.lists(keys, max_size=3)):
            piece = draw(texts)[:8]
            whole[key] = whole.get(key, "") + piece
            batch.append(Delta(key, piece, attachment=(key, len(whole[key]) - len(piece), len(whole[key]))))
        batches.append(batch)
    if draw(st.booleans()):
        batches += [[ChoiceEnd(choice, "stop")] for choice in draw(st.permutations(range(2)))]
    return batches, whole


def pauses(batches: Sequence[Events], key: ChannelKey) -> set[int]:
    """Where in a channel's text the reply turned to another of the choice's; only reasoning ends there."""
    length, places = 0, set()
    for delta in (delta for batch in batches for delta in batch if isinstance(delta, Delta)):
        if delta.key == key:
            length += len(delta.text)
        elif delta.key.choice == key.choice and key.channel == "reasoning":
            places.add(length)
    return places - {0}


@cases(250)
@given(replies(), guard_sets(), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_every_channel_gets_its_text_whatever_the_timing(
    reply: tuple[list[Events], dict[ChannelKey, str]], guards: list[RuleGuard], turns: list[int]
) -> None:
    batches, whole = reply
    for guard in guards:
        if guard.scope == "pattern":
            guard.fail_on = ""

    async def run() -> Reply:
        return await Reply.collect(Upstream(batches), guards, Runner(guards, turns), choices=2)

    got = asyncio.run(run())
    for key, text in whole.items():
        expected = moderated(guards, text, pauses(batches, key))
        released = got.texts.get(key, "")
        ended = got.ended[key.choice]
        assert expected.startswith(released)
        if ended.withheld is None:
            assert released == expected
        untouched = text.startswith(released)
        for own, _, end in got.attachments:
            if own == key and untouched:
                assert end <= len(released)
    if not any(guard.action >= Action.REDACT or guard.on_error.withholds for guard in guards):
        sent = [d.attachment for batch in batches for d in batch if isinstance(d, Delta)]
        assert sorted(got.attachments) == sorted(sent)


async def test_an_attachment_goes_out_only_with_all_of_its_text_unchanged() -> None:
    guards = [RuleGuard("g", [Rule(r"secret \d", Action.REDACT, "[gone]")])]
    got = await Reply.collect(Upstream(words("my secret 7 is safe")), guards, Runner(guards))
    assert got.texts[CONTENT] == "my [gone] is safe "
    assert got.attachments == ["my", "is", "safe"]


async def test_an_attachment_at_the_place_of_a_cut_stays_behind() -> None:
    guards = [RuleGuard("g", [BLOCK])]
    head = [
        Delta(ChannelKey(0, "tool_arguments", 0), "", attachment="head"),
        Delta(CONTENT, "", attachment="x"),
    ]
    got = await Reply.collect(Upstream([[Delta(CONTENT, "bad", "bad")], head]), guards, Runner(guards))
    assert got.attachments == []
    assert got.ended[0].withheld is not None


async def test_an_answer_releases_text_while_the_upstream_is_silent() -> None:
    guards = [RuleGuard("g", [BLOCK], scope="segment")]
    runner, upstream = Runner(guards), Upstream([[Delta(CONTENT, "One two. ")], [Delta(CONTENT, "Three. ")]])
    runner.gate.clear()
    upstream.pauses[1] = asyncio.Event()
    batches = moderate(aiter(upstream), open_channel(guards), runner)
    first = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0.01)
    assert not first.done(), "released before it was examined"
    runner.gate.set()
    async with asyncio.timeout(1):
        assert await first == [Piece(CONTENT, "One two. ")]
    await batches.aclose()


async def test_the_upstream_is_read_on_beside_a_job_but_not_without_end() -> None:
    guards = [RuleGuard("g", [BLOCK], scope="segment", longest=300)]
    runner, upstream = Runner(guards), Upstream([[Delta(CONTENT, "word " * 4_800)]] * 200)
    runner.gate.clear()
    batches = moderate(aiter(upstream), open_channel(guards), runner)
    first = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0.3)
    assert 2 < upstream.read <= READ_AHEAD + 5
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await batches.aclose()
    assert runner.cancelled == runner.started > 0


async def test_closing_cancels_the_jobs_and_the_reading() -> None:
    guards = [RuleGuard("g", [BLOCK], scope="segment"), RuleGuard("p", [BLOCK])]
    runner, upstream = (
        Runner(guards),
        Upstream([[Delta(CONTENT, "One two. ")], *words("and on and on " * 20)]),
    )
    got = moderate(aiter(upstream), open_channel(guards), runner)
    await anext(got)
    runner.gate.clear()
    before = asyncio.all_tasks()
    next_batch = asyncio.ensure_future(anext(got))
    await asyncio.sleep(0.01)
    next_batch.cancel()
    await asyncio.gather(next_batch, return_exceptions=True)
    await got.aclose()
    assert not (asyncio.all_tasks() - before)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("scope", ["pattern", "segment"])
async def test_a_withheld_reply_ends_at_once_and_the_upstream_is_left(scope: Any) -> None:
    guards = [RuleGuard("g", [BLOCK], scope=scope)]
    upstream = Upstream([*words("fine fine. bad thing. more"), *words("and more. " * 500)])
    got = await Reply.collect(upstream, guards, Runner(guards))
    assert (
        got.texts[CONTENT] == "fine fine. "
        if scope == "pattern"
        else "fine fine. ".startswith(got.texts[CONTENT])
    )
    assert got.ended[0].withheld is not None
    assert got.ended[0].reason is None
    assert upstream.read < len(upstream.batches)


async def test_one_choice_withheld_leaves_the_other_alone_and_the_rest_is_read() -> None:
    guards = [RuleGuard("g", [BLOCK])]
    other = ChannelKey(1)
    batches: list[Events] = [[Delta(CONTENT, "bad ")], [Delta(other, "good "), Delta(CONTENT, "more")]]
    batches += [[ChoiceEnd(0, "stop")], [Delta(other, "end")], [ChoiceEnd(1, "length")], []]
    upstream = Upstream(batches)
    got = await Reply.collect(upstream, guards, Runner(guards), choices=2)
    assert got.texts == {other: "good end"}
    assert got.ended[0].withheld is not None
    assert got.ended[1] == ChoiceEnded(1, "length")
    assert upstream.read == len(batches), "what follows the choices (usage) must be read"


async def test_any_channel_withheld_ends_the_whole_choice() -> None:
    guards = [RuleGuard("g", [BLOCK])]
    tool = ChannelKey(0, "tool_arguments", 0)
    batches: list[Events] = [
        [Delta(CONTENT, "calling ")],
        [Delta(tool, '{"a": "bad')],
        [Delta(CONTENT, "done")],
    ]
    got = await Reply.collect(Upstream(batches), guards, Runner(guards))
    assert got.texts == {CONTENT: "calling ", tool: '{"a": "'}
    assert got.ended[0].withheld is not None


async def test_what_was_read_goes_out_before_the_upstreams_error() -> None:
    for scope in ("pattern", "segment"):
        guards = [RuleGuard("g", [BLOCK], scope=scope)]  # type: ignore[arg-type]
        upstream = Upstream([[Delta(CONTENT, "One two three. ")], [Delta(CONTENT, "Four five six. ")]])
        upstream.error = ConnectionResetError("gone")
        reply = Reply()
        with pytest.raises(ConnectionResetError):
            async for batch in moderate(aiter(upstream), open_channel(guards), Runner(guards)):
                reply.add(batch)
        assert "One two three. Four five six. ".startswith(reply.texts.get(CONTENT, ""))
        assert not reply.ended
        if scope == "pattern":
            assert reply.texts[CONTENT] == "One two three. Four five six. "


async def test_a_job_that_never_answers_is_a_failure_at_its_deadline() -> None:
    for on_error in (Action.BLOCK, Action.ESCALATE, Action.ALLOW):
        guards = [RuleGuard("g", [BLOCK], scope="segment", deadline=0.02, on_error=on_error)]
        runner = Runner(guards)
        runner.gate.clear()
        async with asyncio.timeout(2):
            got = await Reply.collect(Upstream([[Delta(CONTENT, "One two. ")]]), guards, runner)
        if on_error is Action.ALLOW:
            assert got.texts[CONTENT] == "One two. "
            assert got.ended[0].withheld is None
        else:
            assert got.texts == {}
            assert got.ended[0].withheld == Failure("g", "timeout", on_error)


@pytest.mark.parametrize(
    ("error", "reason"), [(RuntimeError("bug"), "failed"), (JobError("overloaded"), "overloaded")]
)
async def test_a_runner_that_raises_is_a_failure(error: Exception, reason: str) -> None:
    class Broken(Runner):
        async def run(self, servable: str, payload: Any, timeout: float) -> Any:
            raise error

    guards = [RuleGuard("g", [BLOCK], scope="segment")]
    got = await Reply.collect(Upstream([[Delta(CONTENT, "One two. ")]]), guards, Broken(guards))
    assert got.ended[0].withheld == Failure("g", reason, Action.BLOCK)


async def test_without_jobs_each_batch_is_released_in_place() -> None:
    """The upstream is asked for a batch only after what the last one allowed has been taken."""
    guards = [RuleGuard("g", [Rule(r"\d{3}-\d{2}", Action.REDACT)])]
    upstream = Upstream(words("a quiet day in the woods"))
    seen = []
    async for batch in moderate(aiter(upstream), open_channel(guards), Runner(guards)):
        seen.append((upstream.read, batch))
    assert [read for read, _ in seen] == [1, 2, 3, 4, 5, 6, 6]
    assert seen[0][1] == [Piece(CONTENT, "a ", ("a",))]
    assert seen[-1][1] == [ChoiceEnded(0)]


THINKING = ChannelKey(0, "reasoning")


@pytest.mark.parametrize("following", [CONTENT, ChannelKey(0, "refusal"), ChannelKey(0, "tool_arguments", 0)])
@pytest.mark.parametrize("scope", ["pattern", "segment"])
async def test_reasoning_goes_out_when_the_reply_moves_on(following: ChannelKey, scope: Any) -> None:
    guards = [RuleGuard("g", [Rule("bad", Action.REDACT)], scope=scope, longest=300)]
    upstream = Upstream([[Delta(THINKING, "so ba")], [Delta(following, "")], [Delta(following, "x")]])
    upstream.pauses[2] = asyncio.Event()
    texts: dict[ChannelKey, str] = {}
    async for batch in moderate(aiter(upstream), open_channel(guards), Runner(guards)):
        for piece in batch:
            if isinstance(piece, Piece):
                texts[piece.key] = texts.get(piece.key, "") + piece.text
        if texts.get(THINKING) == "so ba":
            upstream.pauses[2].set()
    assert texts[THINKING] == "so ba"


async def test_reasoning_that_is_taken_up_again_is_examined_with_what_came_before() -> None:
    guards = [RuleGuard("g", [Rule("bad", Action.REDACT, "#"), Rule(r"\bd", Action.BLOCK)])]
    batches: list[Events] = [[Delta(THINKING, "a ba")], [Delta(CONTENT, "well")], [Delta(THINKING, "d x")]]
    got = await Reply.collect(Upstream(batches), guards, Runner(guards))
    assert got.texts == {THINKING: "a ba# x", CONTENT: "well"}


async def test_a_reply_of_nothing() -> None:
    assert (await Reply.collect(Upstream([]), [], Runner([]))).ended == {}
    got = await Reply.collect(Upstream([[ChoiceEnd(0, "stop")]]), [], Runner([]))
    assert got.ended == {0: ChoiceEnded(0, "stop")}
