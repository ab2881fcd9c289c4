"""JSON decoded for guards, and the way back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.json_text import JsonText, Piece

RAW = '{"p\\u0061ssword": "a\\n\\ud83d\\ude00\\"z", "n": [12, -2.5e3, true, null, {"k": ""}], "k": "v"}'


def test_the_view_is_decoded_name_beside_value() -> None:
    assert JsonText(RAW).view == 'password: a\n😀"z\nn: 12\n-2.5e3\ntrue\nnull\nk: \nk: v\n'


def test_pieces_lead_back_and_take_escapes_whole() -> None:
    document = JsonText(RAW)

    def raw(part: str) -> list[tuple[str, bool]]:
        start = document.view.index(part)
        return [(RAW[p.start : p.end], p.scalar) for p in document.pieces(start, start + len(part))]

    assert raw("password") == [("p\\u0061ssword", False)]
    assert raw("😀") == [("\\ud83d\\ude00", False)]
    assert raw('😀"z\nn: 12') == [('\\ud83d\\ude00\\"z', False), ("n", False), ("12", True)]
    assert raw(": ") == [], "what stands between values stands for nothing"
    at = RAW.index("\\n") + 1
    assert list(document.raw_pieces(at, at + 1)) == [Piece(at - 1, at + 1, False)]
    assert [RAW[p.start : p.end] for p in document.raw_pieces(0, RAW.index("-2.5") + 1)][-1] == "-2.5e3"


@pytest.mark.parametrize("raw", ["", "{", "nope", '{"a": NaN}', "[1,]", '"a\nb"', "9" * 5000, '{"a" "b"}'])
def test_what_is_no_json_is_refused(raw: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        JsonText(raw)


def test_depth_is_refused() -> None:
    with pytest.raises(RecursionError):
        JsonText("[" * 100_000 + "]" * 100_000)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(data=_JSON, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]), spans=st.data())
def test_replacing_any_pieces_leaves_valid_json(
    data: object, ascii_only: bool, indent: int | None, spans: st.DataObject
) -> None:
    raw = json.dumps(data, ensure_ascii=ascii_only, indent=indent)
    document = JsonText(raw)
    assert document.data == data
    view = document.view
    start = spans.draw(st.integers(0, len(view)))
    end = spans.draw(st.integers(start, len(view)))
    raw_start = spans.draw(st.integers(0, len(raw)))
    raw_end = spans.draw(st.integers(raw_start, len(raw)))
    for pieces in (list(document.pieces(start, end)), list(document.raw_pieces(raw_start, raw_end))):
        replaced = raw
        for piece in reversed(pieces):
            assert 0 <= piece.start < piece.end <= len(raw)
            replaced = replaced[: piece.start] + piece.encode('["\\x"]') + replaced[piece.end :]
        json.loads(replaced)
        if end == len(view) and start == 0 and pieces and view.strip():
            assert '["\\x"]' in JsonText(replaced).view
