"""Placeholders and the way back."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from guardrails.masking import Unmasker, Vault


def chunked(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(edges)]


def unmask(vault: Vault, chunks: list[str], **options: bool) -> str:
    unmasker = Unmasker(vault, **options)
    return "".join([*(unmasker.feed(chunk) for chunk in chunks), unmasker.feed("", final=True)])


def test_same_value_same_placeholder() -> None:
    vault = Vault()
    first = vault.placeholder("EMAIL_ADDRESS", "a@b.org")
    assert first == "<EMAIL_ADDRESS_1>" == vault.placeholder("EMAIL_ADDRESS", "a@b.org")
    assert vault.placeholder("EMAIL_ADDRESS", "c@d.org") == "<EMAIL_ADDRESS_2>"
    assert vault.placeholder("PERSON", "a@b.org") == "<PERSON_1>"
    assert vault.value("<email_Address_2>") == "c@d.org"
    assert vault.value("<PERSON_9>") is None


def test_a_typed_placeholder_is_nobodys_value() -> None:
    typed = "who is <PERSON_1>, or <person_2>?"
    vault = Vault([typed, "system text"])
    assert vault.placeholder("PERSON", "Ada Lovelace") == "<PERSON_3>"
    assert unmask(vault, [typed]) == typed


def test_vaults_know_nothing_of_each_other() -> None:
    one, two = Vault(), Vault()
    placeholder = one.placeholder("PERSON", "Ada")
    two.placeholder("CITY", "Paris")
    assert unmask(two, [f"hello {placeholder}"]) == f"hello {placeholder}"


def test_odd_types_make_placeholders_that_come_back() -> None:
    vault = Vault()
    for entity_type in ("Größe", "1st", "tool-call", "_", ""):
        placeholder = vault.placeholder(entity_type, "x")
        assert unmask(vault, [f"({placeholder})"]) == "(x)"


def test_a_value_that_looks_like_a_placeholder_is_not_looked_at_again() -> None:
    vault = Vault()
    one = vault.placeholder("A", "<B_1>")
    assert vault.placeholder("B", "secret") == "<B_1>"
    assert unmask(vault, [one]) == "<B_1>"


def test_values_are_escaped_inside_of_json() -> None:
    vault = Vault()
    placeholder = vault.placeholder("NAME", 'Ann "A" \\ Ünal\n')
    arguments = unmask(vault, [f'{{"to": "{placeholder}"}}'], json_strings=True)
    assert json.loads(arguments) == {"to": 'Ann "A" \\ Ünal\n'}


def test_only_what_may_become_a_placeholder_is_held() -> None:
    vault = Vault()
    vault.placeholder("PERSON", "Ada")
    unmasker = Unmasker(vault)
    assert unmasker.feed("a < b <b> <PE") == "a < b <b> "
    assert unmasker.feed("T> x<PERSON_1") == "<PET> x"
    assert unmasker.feed("0> <PERSON_") == "<PERSON_10> "
    assert unmasker.feed("1") == ""
    assert unmasker.feed(">.") == "Ada."
    assert unmasker.feed("<pers", final=True) == "<pers"


def test_an_empty_vault_holds_nothing() -> None:
    assert Unmasker(Vault()).feed("a <PERSON_") == "a <PERSON_"


_VALUES = st.text(alphabet='ab<>_1P"\\\n é', max_size=12)
_TYPES = st.sampled_from(["P", "PERSON", "PERSON_1", "EMAIL_ADDRESS", "p"])
_CUTS = st.lists(st.integers(0, 400), max_size=30)


@given(
    typed=st.lists(
        st.sampled_from(["<PERSON_1>", "<P_2>", "<person_1_1>", "<", "PERSON_1>", "x "]), max_size=6
    ),
    values=st.lists(st.tuples(_TYPES, _VALUES), min_size=1, max_size=6),
    between=_VALUES,
    cuts=_CUTS,
    upper=st.booleans(),
)
def test_what_was_masked_comes_back_under_any_chunking(
    typed: list[str], values: list[tuple[str, str]], between: str, cuts: list[int], upper: bool
) -> None:
    original = "".join(typed)
    vault = Vault([original, between])
    masked = [vault.placeholder(*value) for value in values]
    reply = original + between.join(placeholder if upper else placeholder.lower() for placeholder in masked)
    expected = original + between.join(value for _, value in values)
    assert unmask(vault, chunked(reply, cuts)) == expected


@given(text=st.text(alphabet="<PERSON_12>a ", max_size=80), cuts=_CUTS)
def test_chunking_changes_nothing(text: str, cuts: list[int]) -> None:
    vault = Vault()
    for name in ("Ada", "Bob", "Cyd"):
        vault.placeholder("PERSON", name)
    unmasker, out, fed = Unmasker(vault), "", ""
    whole = Unmasker(vault).feed(text, final=True)
    for chunk in chunked(text, cuts):
        fed += chunk
        out += unmasker.feed(chunk)
        assert whole.startswith(out)
        suffix = fed[fed.rfind("<") :] if "<" in fed else ""
        sure = fed[: len(fed) - len(suffix)] if vault.may_begin(suffix) else fed
        assert out == Unmasker(vault).feed(sure, final=True), "no more is held than may become a placeholder"
    assert out + unmasker.feed("", final=True) == whole
