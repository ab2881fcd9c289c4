"""Normal forms: character by character, with every place known."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.confusables import LOOK_ALIKES
from guardrails.normalize import GrowingNormal, charwise

PIECES = [
    "a", "B", " ", "é", "e\u0301", "ﬁ", "½", "\u200b", "\u00ad", "\u202e", "рау", "Ａ", "ß", "日本", "٣",
    "…", "—", "\U000e0041", "\ufe0f", "🅰", "ﷺ", "\u3164", "\U0001f468\u200d\U0001f469", "\ud800",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=20)


@given(texts, texts)
def test_the_form_of_a_text_is_its_parts_forms(a: str, b: str) -> None:
    assert charwise(a + b).text == charwise(a).text + charwise(b).text


@given(texts)
def test_normal_forms_are_normal(text: str) -> None:
    assert charwise(charwise(text).text).offsets is None


@given(texts)
def test_every_character_knows_where_it_came_from(text: str) -> None:
    normal = charwise(text)
    if normal.offsets is None:
        assert normal.text == text
        return
    assert len(normal.offsets) == len(normal.text)
    assert list(normal.offsets) == sorted(normal.offsets)
    for at, char in enumerate(normal.text):
        start, end = normal.span(at, at + 1)
        assert end == start + 1
        assert char in charwise(text[start:end]).text


@given(texts, st.sets(st.integers(0, 40)))
def test_growing_is_the_same(text: str, cuts: set[int]) -> None:
    growing = GrowingNormal("")
    whole = charwise(text)
    for end in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        growing.grow(text[:end])
        assert growing.text == charwise(text[:end]).text
        assert growing.original(len(growing.text)) == end
    assert growing.text == whole.text
    for at in range(len(whole.text)):
        assert growing.span(at, at + 1) == whole.span(at, at + 1)
        assert growing.original(at) == growing.span(at, at + 1)[0]


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_its_own_normal_form(text: str) -> None:
    normal = charwise(text)
    assert normal.text is text
    assert normal.offsets is None


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("рrоjесt", "project"), ("Ζεύ", "Zeu"), ("ｊｏｈｎ＠ｘ．ｏｒｇ", "john@x.org"),
        ("a\u200bb\u2060c\ufeffd", "abcd"),
        ("𝓅𝓇𝑜𝒿", "proj"), ("ﬁn ½ №", "fin 1/2 No"), ("It’s “ok” – yes…", "It's \"ok\" - yes..."),
        ("١٢٣-４５", "123-45"),
        ("naïve Ångström Łódź", "naive Angstrom Lodz"), ("p\u0336a\u0336y", "pay"), ("🅿🄰🇾", "PAY"),
        ("ᴘᴀʏ", "pay"),
        ("a\u00a0b\u2028c\u3000d", "a b\nc d"), ("日本語", "日本語"), ("🙂", "🙂"), ("\u3164x\u2800y", "x y"),
    ],
)  # fmt: skip
def test_disguises(text: str, normal: str) -> None:
    assert charwise(text).text == normal


def test_every_character_that_is_invisible_by_its_category_goes() -> None:
    for code in range(0x80, sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) == "Cf":
            assert charwise(char).text == "", hex(code)


def test_the_table_leads_from_other_scripts_to_ascii() -> None:
    for look, plain in LOOK_ALIKES.items():
        assert len(look) == 1
        assert not look.isascii()
        assert plain.isascii()
        assert plain.isprintable()
