"""JSON Schemas that strangers wrote, checked against without trusting them.

A request brings its own tools, and with them schemas: nothing is fetched for a `$ref`, expressions have a
time limit, sizes and depths are bounded, and what is compiled is kept for the next call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import regex
from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

MAX_SCHEMA_CHARACTERS = 64 * 1024
_SEARCH_SECONDS = 0.02


class UnusableSchema(Exception):
    """Nothing can be checked against this schema; the message says why."""


def conforms(schema: Mapping[str, Any], data: Any) -> bool:
    """Whether `data` is valid under `schema`.

    Raises UnusableSchema, also where `schema` refers to itself without end or searches without end.
    """
    validator = _compiled(_canonical(schema))
    try:
        return validator.is_valid(data)
    except (Unresolvable, RecursionError, TimeoutError, regex.error) as error:
        raise UnusableSchema(type(error).__name__) from error


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises UnusableSchema for what isn't a JSON Schema."""
    _compiled(_canonical(schema))


def _canonical(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnusableSchema("it is not JSON") from error


@lru_cache(maxsize=256)
def _compiled(canonical: str) -> Validator:
    if len(canonical) > MAX_SCHEMA_CHARACTERS:
        raise UnusableSchema(f"it has more than {MAX_SCHEMA_CHARACTERS} characters")
    schema = json.loads(canonical)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UnusableSchema(error.message[:200]) from error
    except (RecursionError, regex.error) as error:
        raise UnusableSchema(type(error).__name__) from error
    validator: Validator = _Validator(schema, registry=Registry())
    return validator


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield ValidationError("doesn't match the pattern")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in patterns.items():
        for name, value in instance.items():
            if _found(pattern, name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in known or any(_found(pattern, name) for pattern in patterns):
            continue
        if allowed is False:
            yield ValidationError("a property that the schema doesn't allow")
        elif allowed is not True:
            yield from validator.descend(value, allowed, path=name)


def _found(pattern: str, text: str) -> bool:
    return regex.search(pattern, text, timeout=_SEARCH_SECONDS) is not None


_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    },
)
