"""YAML that knows its places, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.document import MAX_BYTES, MAX_DEPTH, Mark, parse_document, read_document
from policies.errors import PolicyError

PATH = Path("policy.yaml")


def refusal(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_document(text, PATH)
    return str(caught.value)


def test_every_key_and_value_has_its_place() -> None:
    document = parse_document("a: 1\nb:\n  - {c: x}\n  - y\n", PATH)
    assert document.data == {"a": 1, "b": [{"c": "x"}, "y"]}
    assert document.find(("b", 0, "c"), key=True) == Mark(3, 6)
    assert document.find(("b", 0, "c")) == Mark(3, 9)
    assert document.find(("b", 1)) == Mark(4, 5)
    assert document.find(("b", 0, "missing", "deeper")) == Mark(3, 5), "the nearest thing around it"


def test_words_are_words_and_numbers_are_decimal() -> None:
    document = parse_document(
        "words: [no, on, Yes, 2026-01-01, 1:30, .inf]\nnumbers: [0777, 0x1F, 1e3, -.5, 7]", PATH
    )
    assert document.data["words"] == ["no", "on", "Yes", "2026-01-01", "1:30", ".inf"]
    assert document.data["numbers"] == [777, 31, 1000.0, -0.5, 7]
    assert parse_document("[true, False, null, ~, 'true', '7']", PATH).data == [
        True,
        False,
        None,
        None,
        "true",
        "7",
    ]


def test_anchors_and_merges() -> None:
    text = "base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\nall:\n  <<: [*b, *o]\n  x: 5\nalso: *b\n"
    document = parse_document(text, PATH)
    assert document.data["all"] == {"x": 5, "y": 2, "z": 4}, "own keys win, then earlier mappings"
    assert document.data["also"] == {"x": 1, "y": 2}
    assert document.find(("all",)) == Mark(4, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "policy.yaml:1:1: is empty"),
        ("a: 1\nb: 2\na: 3\n", "policy.yaml:3:1: key 'a' is given twice (first on line 1)"),
        ("a: [1, 2", "policy.yaml:1:9: not valid YAML: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", "policy.yaml:2:1: not valid YAML: a second document begins here"),
        ("a: &x [*x]\n", "policy.yaml:1:4: an alias stands inside what it names"),
        ("a: &x {<<: *x}\n", "an alias stands inside what it names"),
        ("a: *nowhere\n", "found undefined alias 'nowhere'"),
        (
            "a: !!python/object:os.system {}\n",
            "policy.yaml:1:4: tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("a: !secret x\n", "tag '!secret' is not used in policies"),
        ("a: !!set [x]\n", "is not used in policies"),
        ("? [a, b]\n: 1\n", "policy.yaml:1:3: a key must be a plain word"),
        ("a: {<<: 3}\n", "'<<' needs an alias of a mapping"),
        ('a: "\\ud800"\n', "half of a surrogate pair"),
        ("a: b\0c\n", "policy.yaml:1:1: character U+0000 is not allowed in YAML"),
        ("[" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels"),
        ("a: " + "9" * 5000, "is not a number"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    assert message in refusal(text)


def test_refuses_a_bomb_of_aliases() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "unfolds into more than" in refusal("\n".join(lines))


def test_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    large, latin, missing = tmp_path / "large.yaml", tmp_path / "latin.yaml", tmp_path / "missing.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    latin.write_bytes(b"name: x\ndescription: caf\xe9\n")
    for path, message in (
        (large, "is larger than"),
        (latin, ":2:1: is not UTF-8"),
        (missing, "No such file"),
    ):
        with pytest.raises(PolicyError, match=message):
            read_document(path)


_NEARLY_YAML = st.text(alphabet=st.sampled_from("ab1.:-[]{},&*!'\"|>#%@` \n\t~<?\\é\0\ud800"), max_size=60)


@given(_NEARLY_YAML | st.text(max_size=60))
def test_any_text_is_a_document_or_a_policy_error(text: str) -> None:
    try:
        parse_document(text, PATH)
    except PolicyError as error:
        assert all(fault.line >= 1 and fault.column >= 1 for fault in error.faults)
