"""JSON Schemas that strangers wrote."""

from __future__ import annotations

from typing import Any

import pytest

from guardrails.schemas import MAX_SCHEMA_CHARACTERS, UnusableSchema, check_schema, conforms

OBJECT = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z]"},
        "days": {"type": "integer", "minimum": 1},
    },
    "required": ["city"],
    "additionalProperties": False,
    "patternProperties": {"^x-": {"type": "string"}},
}


@pytest.mark.parametrize(
    ("data", "valid"),
    [
        ({"city": "Paris"}, True),
        ({"city": "Paris", "days": 3, "x-a": "y"}, True),
        ({"city": "paris"}, False),
        ({"city": "Paris", "days": 0}, False),
        ({"city": "Paris", "days": "3"}, False),
        ({"city": "Paris", "x-a": 1}, False),
        ({"city": "Paris", "other": 1}, False),
        ({"days": 3}, False),
        ([], False),
    ],
)
def test_conforming(data: Any, valid: bool) -> None:
    assert conforms(OBJECT, data) is valid


def test_additional_properties_may_have_a_schema_and_references_work() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "additionalProperties": {"$ref": "#/$defs/n"}}
    assert conforms(schema, {"a": 1}) and not conforms(schema, {"a": "b"})
    assert conforms({"additionalProperties": True}, {"a": "b"}) and conforms(
        {"additionalProperties": False}, []
    )


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("a schema made us call somebody")

    monkeypatch.setattr(urllib.request, "urlopen", fetched)
    with pytest.raises(UnusableSchema):
        conforms({"$ref": "http://127.0.0.1:9/schema.json"}, {})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"properties": 3},
        {"description": "x" * (MAX_SCHEMA_CHARACTERS + 1)},
        {"enum": [{1, 2}]},
    ],
)
def test_what_is_no_schema(schema: Any) -> None:
    with pytest.raises(UnusableSchema):
        check_schema(schema)


def test_schemas_that_never_end_end() -> None:
    with pytest.raises(UnusableSchema):
        conforms({"$ref": "#"}, {})
    with pytest.raises(UnusableSchema):
        conforms({"pattern": "^(a|a)*(b|b)*$(?<!x)$y|^((a+)+)+$"}, "a" * 60 + "!")
    with pytest.raises(UnusableSchema):
        conforms({"pattern": "("}, "x")
