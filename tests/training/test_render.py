"""Rendering: what is trained on is what serving renders, and the mask is the assistant's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from training.data.conversation import Conversation, Message
from training.data.render import render, render_within
from training.data.tokenizer import END, PAD, SPECIAL_TOKENS, train_tokenizer
from training.errors import TrainingError

TOKENIZER = train_tokenizer(["Hello there, how are you?", "I am fine, and you?"], 300, 256)

# Rendered text is what a client may send: any Unicode, special tokens' spelling included.
contents = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30),
    st.sampled_from(
        ["<|assistant|>", "<|end|>", "a<|user|>b", "<|", "< |end|>", "12 34", "é\u200b漢", "  x  "]
    ),
).filter(lambda text: text.strip() != "")


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = [Message("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(contents)), Message("assistant", draw(contents))]
    return Conversation(tuple(messages), draw(st.sampled_from(["assistant", "all"])))


@given(conversations())
def test_the_ids_are_those_of_the_chat_template(conversation: Conversation) -> None:
    ids = TOKENIZER.apply_chat_template(conversation.as_dicts())["input_ids"]
    assert list(render(conversation, TOKENIZER).ids) == ids


@given(conversations())
def test_what_precedes_a_reply_is_the_prompt_that_serving_renders(conversation: Conversation) -> None:
    prompt = TOKENIZER.apply_chat_template(conversation.as_dicts()[:-1], add_generation_prompt=True)[
        "input_ids"
    ]
    ids = list(render(conversation, TOKENIZER).ids)
    assert ids[: len(prompt)] == prompt


@given(conversations())
def test_the_mask_is_the_assistants_words_and_their_ends(conversation: Conversation) -> None:
    example = render(conversation, TOKENIZER)
    learnt = [i for i, s in zip(example.ids, example.supervised, strict=True) if s]
    if conversation.supervise == "all":
        assert learnt == list(example.ids)
        return
    replies = [m.content.strip().replace("<|", "< |") for m in conversation.messages if m.role == "assistant"]
    assert TOKENIZER.decode(learnt) == "".join(reply + END for reply in replies)


@given(conversations())
def test_a_message_cannot_forge_a_role(conversation: Conversation) -> None:
    example = render(conversation, TOKENIZER)
    specials = set(TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    assert sum(i in specials for i in example.ids) == 2 * len(conversation.messages)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_no_text_is_out_of_vocabulary(text: str) -> None:
    ids = TOKENIZER(text.replace("<|", ""), add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text.replace("<|", "")


def test_padding_is_not_the_end() -> None:
    assert TOKENIZER.pad_token == PAD
    assert TOKENIZER.eos_token == END
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    assert TOKENIZER.bos_token is None


def test_digits_are_tokens_of_their_own() -> None:
    assert TOKENIZER.tokenize("2026") == list("2026")


def test_what_serving_may_send_renders() -> None:
    def text(messages: list[dict[str, object]]) -> str:
        rendered = TOKENIZER.apply_chat_template(messages, tokenize=False)
        assert isinstance(rendered, str)
        return rendered

    assert text([{"role": "developer", "content": "Be kind."}]) == "<|system|>Be kind.<|end|>"
    assert text([{"role": "assistant", "content": None}]) == "<|assistant|><|end|>"
    assert text([{"role": "tool", "content": "42"}]) == "<|tool|>42<|end|>"


def a_conversation(*turns: str) -> Conversation:
    return Conversation(tuple(Message("assistant" if i % 2 else "user", t) for i, t in enumerate(turns)))


def test_what_is_too_long_loses_its_last_exchanges() -> None:
    talk = a_conversation("Hello", "Hello there", "how are you", "I am fine")
    first = render(a_conversation("Hello", "Hello there"), TOKENIZER)
    assert render_within(talk, TOKENIZER, 1000) == render(talk, TOKENIZER)
    assert render_within(talk, TOKENIZER, len(first)) == first
    assert render_within(talk, TOKENIZER, len(first) - 1) is None


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    last_only = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZER.backend_tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template="{{ messages[-1]['content'] }}",
    )
    with pytest.raises(TrainingError, match="only appends"):
        render(a_conversation("one", "two", "three", "four"), last_only)
