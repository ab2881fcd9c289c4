"""A model in this process as a target, and the page of what a round came to."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from tests.training.tiny import tiny_model, tiny_tokenizer
from training.redteam import CallableTarget, RulesRubric, attacks_for, compare, load_behaviors
from training.redteam.api import asked
from training.redteam.harvest import REFUSAL
from training.redteam.lessons import (
    PHRASINGS,
    REFUSALS_TO_ANSWERS,
    Lessons,
    lessons,
    ordinary_prompts,
    twin_prompts,
)
from training.redteam.local import LocalTarget
from training.redteam.price import LOOK_ALIKES, ORDINARY, RIGHT, Harmless, Price, harmless
from training.redteam.rounds_page import (
    Hunts,
    Round,
    hunts_section,
    paired_change,
    rounds_section,
    write_sections,
)
from training.redteam.twins import twins_of
from training.refusals import refuses

WEAPONS = load_behaviors(["weapons"])


def test_a_model_answers_what_it_can_hold_whatever_shares_its_batch() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    attacks = attacks_for(WEAPONS[0], ["direct", "typos", "leet", "tool_result", "many_shot"])
    together = asked(
        [LocalTarget(model, tokenizer, max_new_tokens=4)], attacks, twins_of(WEAPONS[:1]), [RulesRubric()]
    )
    alone = asked([LocalTarget(model, tokenizer, max_new_tokens=4, batch=1)], attacks, (), [RulesRubric()])
    assert [a.reply for a in together.attempts] == [a.reply for a in alone.attempts]
    by_strategy = {attempt.strategy: attempt for attempt in together.attempts}
    assert by_strategy["tool_result"].outcome == "error"
    assert "tool calls" in by_strategy["tool_result"].error
    assert by_strategy["direct"].counted
    assert by_strategy["many_shot"].outcome == "error"  # longer than what the model reads


def obliging(messages: list[dict[str, str]]) -> str:
    return f"Sure: {messages[-1]['content']}"


def test_the_page_tells_ratios_and_changes(tmp_path: Path) -> None:
    hunts = Hunts(100, (4, 6), (10, 14), uniform_broke=(4, 4), learner_broke=(5, 7), requests=(240, 200))
    assert hunts.ratio.value == 2.4
    assert hunts.ratio.low <= 2.4 <= hunts.ratio.high
    targets = [CallableTarget(obliging, "before"), CallableTarget(lambda _: REFUSAL, "after")]
    asked = (("one", False), ("one", True), ("two", False), ("two", True))
    told = {"ordinary": asked, RIGHT: asked}
    turned = {"ordinary": tuple((about, True) for about, _ in asked), RIGHT: asked}
    played = Round(0, (7, 9), compare(targets, WEAPONS, strategies=["direct"]), Price(told), Price(turned))
    kept = TypeAdapter(Round)
    assert kept.validate_json(kept.dump_json(played)).report == played.report
    page = tmp_path / "page.md"
    sections = {
        "hunts": hunts_section(hunts, "keel-train redteam-rounds --budget 100", "a test."),
        "rounds": rounds_section([played], "keel-train redteam-rounds", "a test.", 12),
    }
    write_sections(page, sections)
    text = page.read_text()
    assert "The learner finds 2.40 [" in text
    assert "and breaks 1.50 [" in text
    assert "| 1 | 6 (4) | 14 (7) |" in text
    assert "finds\n2.88 times as many" in text
    assert (
        "| 0 | 7, 9 | 100.0 % [67.6, 100.0] | 0.0 % [0.0, 32.4] | 0.0 % [0.0, 32.4] | 100.0 % [67.6, 100.0] |"
        in text
    )
    assert "| attacks that succeed | 8 | 100.0 % [67.6, 100.0] | 0.0 % [0.0, 32.4] | -100.0 [" in text
    assert "| ordinary questions: no answer | 4 | 50.0 % [15.0, 85.0] | 100.0 %" in text
    assert "| +50.0 [+50.0, +50.0] |" in text  # each of the two subjects lost one of two answers
    assert "word for word | 4 | 50.0 % [15.0, 85.0] | 50.0 % [15.0, 85.0] | +0.0 [+0.0, +0.0] |" in text
    assert "{" not in text
    write_sections(page, {"rounds": "`another command`: told anew."})
    assert "The learner finds 2.40 [" in page.read_text()
    assert "told anew" in page.read_text()
    assert "100.0 %" not in page.read_text()


def test_a_change_is_drawn_by_what_the_questions_are_about() -> None:
    many = [("one", False, True)] * 50 + [("two", True, True)] * 50
    assert paired_change(many).value == 0.5
    assert (paired_change(many).low, paired_change(many).high) == (0, 1)  # two subjects are little
    steady = paired_change([(str(n), False, n % 2 == 0) for n in range(100)])
    assert 0.35 < steady.low < steady.value == 0.5 < steady.high < 0.65


def test_as_many_answers_are_learnt_as_refusals() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, context=512)
    tries = compare([CallableTarget(obliging)], WEAPONS, strategies=["direct", "typos", "tool_result"])
    pairs = lessons(model, tokenizer, tries.attempts, WEAPONS[:2], 0)
    outright = pairs.refusing[16:]  # those of tool calls can't be learnt from
    assert {pair.id for pair in pairs.refusing[:16]} == {behavior.id for behavior in WEAPONS}
    requests = {form.format(b.request) for b in WEAPONS[:2] for form in PHRASINGS}
    assert {pair.prompt[-1].content for pair in outright} == requests
    assert {pair.chosen for pair in pairs.refusing} == {REFUSAL}
    assert {pair.rejected for pair in pairs.answering} == {REFUSAL}
    assert not any(refuses(pair.chosen) or "sorry" in pair.chosen.lower() for pair in pairs.answering)
    twins = {behavior.twin for behavior in WEAPONS[:2]}
    about_twins = [p for p in pairs.answering if any(twin in p.prompt[-1].content for twin in twins)]
    assert 0 < len(about_twins) <= len(twins) * len(PHRASINGS)
    # Else the system prompt would tell attacks from twins.
    assert {pair.prompt[0] for pair in about_twins} == {pair.prompt[0] for pair in pairs.refusing}
    assert len(set(about_twins)) == len(about_twins)
    balanced = pairs.balanced(0)
    refusals = [pair for pair in balanced if pair.chosen == REFUSAL]
    assert len(refusals) == REFUSALS_TO_ANSWERS * (len(balanced) - len(refusals))
    assert set(balanced) == {*pairs.refusing, *pairs.answering}
    assert balanced == pairs.balanced(0) != pairs.balanced(1)
    assert Lessons(pairs.refusing, ()).balanced(0) == list(pairs.refusing)


def test_the_price_is_of_what_was_not_learnt_from() -> None:
    tokenizer = tiny_tokenizer()
    unseen = [*WEAPONS[:2], *load_behaviors(["indirect"])[:1]]
    asked = harmless(unseen, ["direct", "crescendo", "typos"], 0)
    counts = {kind: len(prompts) for kind, prompts in asked.prompts.items()}
    assert counts == {"rephrased": 8, "clothed": 4, "look-alike": LOOK_ALIKES, "ordinary": ORDINARY}
    learnt = {prompt[-1].content for prompt in [*twin_prompts(unseen, 0), *ordinary_prompts(ORDINARY, 0)]}
    assert not learnt & {
        prompt[-1].content for kind in ("rephrased", "ordinary") for _, prompt in asked.prompts[kind]
    }
    few = Harmless({kind: asked.prompts[kind][:4] for kind in ("look-alike", "ordinary")}, asked.answers[:4])
    told = few.price(tiny_model(tokenizer, context=512), tokenizer).told
    assert {kind: len(flags) for kind, flags in told.items()} == {"look-alike": 4, "ordinary": 4, RIGHT: 4}
