"""A model in this process as a target, and the page of what a round came to."""

from __future__ import annotations

from tests.training.tiny import tiny_model, tiny_tokenizer
from training.redteam import CallableTarget, RulesRubric, attacks_for, compare, load_behaviors
from training.redteam.api import asked
from training.redteam.local import LocalTarget
from training.redteam.rounds import Hunts, Round, document
from training.redteam.twins import twins_of

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


def test_the_page_tells_ratios_and_changes() -> None:
    hunts = Hunts(100, (4, 6), (10, 14), uniform_broke=(4, 4), learner_broke=(5, 7), requests=(240, 200))
    assert hunts.ratio.value == 2.4
    assert hunts.ratio.low <= 2.4 <= hunts.ratio.high

    def obliging(messages: list[dict[str, str]]) -> str:
        return f"Sure: {messages[-1]['content']}"

    targets = [
        CallableTarget(obliging, "before"),
        CallableTarget(lambda _: "I am sorry, but I cannot help with that.", "after"),
    ]
    played = Round(0, 7, compare(targets, WEAPONS, strategies=["direct"]))
    page = document(hunts, [played], "keel-train redteam-rounds", "A test.")
    assert "The learner finds 2.40 [" in page
    assert "and breaks 1.50 [" in page
    assert "| 1 | 6 (4) | 14 (7) |" in page
    assert "finds\n2.88 times as many" in page
    assert (
        "| 0 | 7 | 100.0 % [67.6, 100.0] | 0.0 % [0.0, 32.4] | 0.0 % [0.0, 32.4] | 100.0 % [67.6, 100.0] |"
        in page
    )
    assert "-100.0 [-100.0, -100.0] points" in page
    assert "{" not in page
