"""pydantic's errors as faults in a file: where it is written, in the words of a policy's author."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from policies.document import Document
from policies.errors import Fault, Loc, Problem
from policies.guards import GuardBase
from policies.spec import PolicySpec

_MAPPING, _LIST, _NUMBER, _WHOLE, _TRUTH = (
    "must be a mapping of keys to values",
    "must be a list",
    "must be a number",
    "must be a whole number",
    "must be true or false",
)
_MESSAGES = {
    "string_type": "must be text; if it is meant as text, put it in quotes",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "bool_type": _TRUTH,
    "bool_parsing": _TRUTH,
    "tuple_type": _LIST,
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
}


def explain(
    error: ValidationError, document: Document, path: Path, root: type[BaseModel] = PolicySpec
) -> list[Fault]:
    """Everything that `error` says about a `root`, at its places in `document`."""
    faults = []
    for details in error.errors(include_url=False):
        where = _trace(details["loc"], root)
        if where.concerns(document.data):
            key = details["type"] == "extra_forbidden"
            faults += [place(p, document, path, key=key) for p in _problems(details, where)]
    return faults


def place(problem: Problem, document: Document, path: Path, *, key: bool = False) -> Fault:
    """`problem` where it is written; with `key`, at the key rather than at its value."""
    mark = document.find(problem.loc, key=key)
    return Fault(path, mark.line, mark.column, f"{dotted(problem.loc)}{problem.message}")


def dotted(loc: Loc) -> str:
    """`loc` as a person writes it, with a colon behind: `input[0].threshold: `; empty for the root."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return f"{text.lstrip('.')}: " if text else ""


def suggestion(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` where one of `known` is close to `word`, else the list of them."""
    by_folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=0.6)
    return f"; did you mean {by_folded[close[0]]!r}?" if close else f"; known are: {', '.join(known)}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an error is: its path in the file, the model that owns the path's last key, and the members of
    untagged unions that pydantic tried on the way."""

    loc: Loc
    owner: type[BaseModel] | None
    tried: tuple[tuple[Loc, Any], ...]

    def concerns(self, data: Any) -> bool:
        """False for what pydantic says about union members that the author can't have meant."""
        return all(_is_model(member) == isinstance(_at(data, loc), Mapping) for loc, member in self.tried)


def _trace(loc: Loc, root: type[BaseModel]) -> _Place:
    """Walks the types of `root` along `loc`, which also names the members of unions."""
    real: list[str | int] = []
    tried: list[tuple[Loc, Any]] = []
    owner: type[BaseModel] | None = None
    at: Any = root
    for part in loc:
        members = _members(at)
        if len(members) > 1:
            at = next((m for m in members if _is_called(m, str(part))), None)
            if not (_is_model(at) and issubclass(at, GuardBase)):
                tried.append((tuple(real), at))
            continue
        at = members[0] if members else None
        real.append(part)
        owner = at if _is_model(at) else None
        at = _child(at, part)
    return _Place(tuple(real), owner, tuple(tried))


def _members(annotation: Any) -> list[Any]:
    """The types that `annotation` may be, without None and without metadata."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for a in get_args(annotation) if a is not type(None) for m in _members(a)]
    return [annotation]


def _child(annotation: Any, part: str | int) -> Any:
    if _is_model(annotation):
        info = annotation.model_fields.get(str(part))
        return info.annotation if info else None
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if get_origin(annotation) is tuple else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_called(member: Any, label: str) -> bool:
    """Whether pydantic's `label` for a union's member means `member`: a tag, a name, or a wrapper of one."""
    if _is_model(member) and issubclass(member, GuardBase):
        return bool(member.model_fields["guard"].default == label)
    return isinstance(member, type) and re.search(rf"\b{member.__name__}\b", label) is not None


def _at(data: Any, loc: Loc) -> Any:
    for part in loc:
        try:
            data = data[part]
        except (LookupError, TypeError):
            return None
    return data


def _problems(details: ErrorDetails, where: _Place) -> Iterator[Problem]:
    kind, context, given = details["type"], details.get("ctx", {}), details.get("input")
    loc = where.loc
    match kind:
        case "policy":
            yield from (Problem((*loc, *at), message) for at, message in context["problems"])
        case "extra_forbidden":
            known = list(where.owner.model_fields) if where.owner else []
            yield Problem(loc, f"unknown key{suggestion(str(loc[-1]), known)}")
        case "missing":
            yield Problem(loc[:-1], f"{loc[-1]!r} is missing")
        case "union_tag_invalid":
            known = _quoted(context["expected_tags"])
            yield Problem(
                (*loc, "guard"), f"unknown guard {context['tag']!r}{suggestion(context['tag'], known)}"
            )
        case "union_tag_not_found" | "model_attributes_type":
            example = given if isinstance(given, str) else "pii"
            yield Problem(loc, f"needs to say which guard it is, as in '- {{guard: {example}}}'")
        case "literal_error":
            known = _quoted(context["expected"])
            yield Problem(loc, f"can't be {given!r}{suggestion(str(given), known)}")
        case "string_pattern_mismatch" if loc[-1] in ("name", "label", "id"):
            message = (
                "must be lower-case letters, digits, '.', '_' and '-', 64 at most, a letter or digit first"
            )
            yield Problem(loc, message)
        case "too_short" | "too_long" if len(given or ()) == context["actual_length"]:
            bound = (
                f"at least {context['min_length']}"
                if kind == "too_short"
                else f"at most {context['max_length']}"
            )
            yield Problem(loc, f"must have {bound}, not {context['actual_length']}")
        case "too_short" | "too_long":
            pass  # pydantic counts only the items that were right; the others have errors of their own
        case "default_factory_not_called":
            pass  # another field, from which it would have been made, has an error of its own
        case "value_error":
            yield Problem(loc, str(context["error"]))
        case _:
            message = _MESSAGES.get(kind) or details["msg"].replace("Input should", "must").replace(
                "String", "text", 1
            )
            yield Problem(loc, f"{message}{_not_this(given)}")


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _not_this(given: Any) -> str:
    return f", not {given!r}" if isinstance(given, str | int | float) and len(str(given)) <= 40 else ""
