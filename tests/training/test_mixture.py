"""Mixing: cleaning, holding out, licences, and what must never be trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.cleaning import clean_conversation, clean_text, is_unfit, rare_share, rare_words
from training.data.conversation import Conversation, Message
from training.data.mixture import MixtureConfig, SourceConfig, is_held_out, load_mixture
from training.data.starter import starter_conversations
from training.errors import ConfigError, TrainingError


def talk(*turns: str) -> Conversation:
    return Conversation(tuple(Message("assistant" if i % 2 else "user", t) for i, t in enumerate(turns)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [json.dumps({"turns": [f"question {n}", f"answer {n}"]}) for n in range(200)]
    (tmp_path / "talk.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def a_source(**changes: object) -> SourceConfig:
    fields = {"path": "talk.jsonl", "format": "turns", "origin": "these tests", "licence": "MIT"}
    return SourceConfig.model_validate(fields | changes)


def test_a_source_is_recorded_with_its_digest(root: Path) -> None:
    mixture = load_mixture(MixtureConfig(sources=(a_source(),), starter=5), root, seed=0)
    file, starter = mixture.data
    assert file.sha256 == hashlib.sha256((root / "talk.jsonl").read_bytes()).hexdigest()
    assert (file.origin, file.licence) == ("these tests", "MIT")
    assert starter.path == "training/data/starter"


def test_what_is_held_out_is_so_in_every_mixture(root: Path) -> None:
    config = MixtureConfig(sources=(a_source(),), held_out=0.2)
    one = load_mixture(config, root, seed=1)
    other = load_mixture(
        config.model_copy(update={"system_prompts": ("Be kind.",), "system_share": 1.0}), root, seed=2
    )
    assert one.held_out == other.held_out
    assert 20 <= len(one.held_out) <= 60
    assert not set(one.train) & set(one.held_out)
    assert all(not is_held_out(c, 0.2) for c in other.train)


def test_shares_repeats_and_system_prompts(root: Path) -> None:
    config = MixtureConfig(
        sources=(a_source(share=0.5, repeat=2),), held_out=0, system_prompts=("Be kind.",), system_share=0.5
    )
    mixture = load_mixture(config, root, seed=0)
    assert 140 <= len(mixture.train) <= 260
    with_system = sum(c.messages[0].role == "system" for c in mixture.train)
    assert 0.35 < with_system / len(mixture.train) < 0.65


def test_research_only_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "research_only").mkdir()
    (tmp_path / "research_only" / "x.jsonl").write_text('{"turns": ["a", "b"]}\n')
    for path in ("research_only/x.jsonl", "sft/../research_only/x.jsonl"):
        (tmp_path / "sft").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="never trains"):
            load_mixture(MixtureConfig(sources=(a_source(path=path),)), tmp_path, 0)


def test_a_missing_file_says_how_to_name_the_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data"):
        load_mixture(MixtureConfig(sources=(a_source(),)), tmp_path, 0)


def test_nothing_left_to_train_on_is_an_error(root: Path) -> None:
    with pytest.raises(TrainingError, match="no conversation is left"):
        load_mixture(MixtureConfig(sources=(a_source(max_words=1),)), root, 0)


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("i dont know , im tired", "I don't know, I'm tired."),
        ("what is it", "What is it?"),
        ("so do you like it", "So do you like it?"),
        ("I AGREE WITH YOU", "I agree with you."),
        ("yes.it is great!!!!!", "Yes. It is great!"),
        ("“Quoted” – it’s", '"Quoted" - it\'s.'),
        ("Call 408-971-8523 at 11:30 am.", "Call 408-971-8523 at 11:30 am."),
        ("", ""),
    ],
)
def test_text_is_tidied(text: str, tidy: str) -> None:
    assert clean_text(text) == tidy


@given(st.text("abc iI.,!?'dont", max_size=40))
def test_tidying_twice_changes_no_words(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once).lower().split() == once.lower().split() or once[-1:].isalnum() is False


@pytest.mark.parametrize(
    "text", ["", "LOUD SHOUTING HERE", "word " * 71, "see http://x.y", "漢字漢字漢字", "12 34 56 7"]
)
def test_unfit_turns_are_known(text: str) -> None:
    assert is_unfit(text)


def test_a_conversation_is_cut_before_its_first_unfit_turn() -> None:
    cleaned = clean_conversation(talk("hi", "hello", "see www.spam.example", "no"))
    assert cleaned == talk("Hi.", "Hello.")
    assert clean_conversation(talk("see www.spam.example", "no")) is None


def test_a_pasted_turn_ends_the_conversation() -> None:
    turn = "I really like this old song."
    assert clean_conversation(talk(turn, "Me too.", turn, "Yes.")) == talk(turn, "Me too.")


def test_misspelt_conversations_are_told_by_rare_words() -> None:
    common = [talk("do you like it", "i like it a lot")] * 10
    odd = talk("do yuo lkie it", "i like it")
    rare = rare_words([*common, odd])
    assert rare_share(common[0], rare) == 0
    assert rare_share(odd, rare) == pytest.approx(2 / 6)


def test_starter_conversations_are_well_formed_and_repeatable() -> None:
    some = list(starter_conversations(3000, seed=4))
    assert some == list(starter_conversations(3000, seed=4))
    assert some != list(starter_conversations(3000, seed=5))
    assert all(c.problem() is None for c in some)
    texts = [m.content for c in some for m in c.messages]
    assert all(text == text.strip() and "{" not in text for text in texts)
    assert any("<EMAIL_ADDRESS_1>" in text for text in texts)
    assert len(set(texts)) > 1000
