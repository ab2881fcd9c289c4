"""Rewriting a regular expression so that its engine shows how far it depends on text yet to come.

A backtracking search from one start is a deterministic walk over the text. As long as the walk never
looks at the end of the text, every longer text gives the same walk, and so the same match or the same
failure. The `regex` package reports a *partial* match as soon as a walk wants a character beyond the end;
two things escape it, and the rewriting (the *hold* form) closes both with a probe, a look-ahead that wants
one character and then doesn't mind:

* assertions (`\\b`, `$`, a look-behind, a back-reference to an unset group) answer at the end of the text
  without wanting more, though more text may change the answer;
* a repeated group that could stop or go on at the end of the text silently stops.

Where nothing has been consumed yet the first needs no probe: a walk that starts at the end of the text
holds nothing back anyway.

The *watching* form adds an empty group and then wants the whole rest of the text and a character more. So
it always ends in a partial match: at the first start whose walk either gets to a match (then the group is
set: this match is certain) or before that to the end of the text (then it isn't: all is still open).

Only constructs whose behaviour at the end of a text is known are let through; the others are refused with
a message that says what to write instead. `tests/guardrails/test_scan.py` compares the result with
exhaustive extension of the text, construct by construct and at random.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_PROBE = "(?=(?s:.)|)"
# `$` also looks past a last newline: "x\n" ends a line for it, "x\ny" does not.
_PROBE_PAST_NEWLINE = r"(?=\n?+(?s:.)|)"
_MATCHED = r"()(?s:.*+)(?s:.)"

_GLOBAL_FLAGS = re.compile(r"\(\?([a-zA-Z0-9]+)\)")
_SCOPED_FLAGS = re.compile(r"\(\?([a-zA-Z]*)(?:-([a-zA-Z]+))?:")
_GROUP = re.compile(r"\((?:\?(?:P?<[A-Za-z_]\w*>|:|>|=|!|<=|<!))?")
_NAMED_REFERENCE = re.compile(r"\(\?P=[A-Za-z_]\w*\)")
_COUNT = re.compile(r"\{(?:\d+(?:,\d*)?|,\d+)\}")
_CODE_POINT = re.compile(
    r"x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[pP](?:\{[^{}]+\}|[A-Z])|N\{[^{}]+\}"
)
_POSIX_CLASS = re.compile(r"\[:\^?[a-z]+:\]")

_CHARACTER_ESCAPES = frozenset("afnrtvdDsSwW0")
_ASSERTION_ESCAPES = frozenset("bBmMZ")
_REFUSED_ESCAPES = {
    "X": "a grapheme's end can't be told until the next one begins; match the code points instead",
    "R": r"write (?:\r\n|[\n\r]) instead",
    "K": "it moves the start of a match after the fact; use a look-behind (?<=…) instead",
    "G": "it depends on where an earlier match ended; leave it out",
    "L": "named lists are not supported; use 'words' or an alternation",
    "g": r"write \1 or (?P=name) instead",
}
_REFUSED_GROUPS = (
    (re.compile(r"\(\?\("), "conditional groups", "write the two cases as an alternation"),
    (re.compile(r"\(\?\|"), "branch-reset groups", "use plain groups (?:…)"),
    (re.compile(r"\(\?(?:R|[+-]?\d|&|P>)"), "recursive and called groups", "write the repetition out"),
    (re.compile(r"\(\*"), "backtracking verbs", "leave the verb out"),
    (re.compile(r"\(\?#"), "comments in groups", "leave the comment out, or set the flag x and use #"),
)


class PatternError(ValueError):
    """An expression that can't be used on a stream: what is wrong, where in it, and what to do instead."""

    def __init__(self, message: str, expression: str, position: int | None = None) -> None:
        at = "" if position is None else f" at column {position + 1}"
        super().__init__(f"{message}{at} in the expression {expression!r}")
        self.position = position


@dataclass(slots=True)
class _Group:
    """A group that is open: where its body begins in the output, and which way the engine walks in it."""

    body: int
    opened_at: int
    backward: bool
    probed_before: bool
    body_at_start: bool
    at_start_after: bool


@dataclass(slots=True)
class _Rewriter:
    source: str
    verbose: bool
    position: int = 0
    out: list[str] = field(default_factory=list)
    groups: list[_Group] = field(default_factory=list)
    names_or_numbers: bool = False  # of groups matter to it
    at_start: bool = True  # nothing has been consumed on the way here

    def fail(self, what: str, instead: str) -> PatternError:
        return PatternError(f"{what}: not supported on streams; {instead}", self.source, self.position)

    def take(self, text: str) -> None:
        self.out.append(text)
        self.position += len(text)

    def take_atom(self, text: str) -> None:
        self.take(text)
        self.at_start = False

    def take_assertion(self, text: str) -> None:
        """One that looks at the characters before and after its place only."""
        if self.at_start:
            self.take(text)
        else:
            self.take_probed(text)

    def take_probed(self, text: str, probe: str = _PROBE) -> None:
        self.out.append(f"(?:{probe}{text})")
        self.position += len(text)

    def run(self) -> None:
        source = self.source
        while self.position < len(source):
            char = source[self.position]
            if char == "\\":
                self.escape()
            elif char == "[":
                self.take_atom(source[self.position : self.end_of_set()])
            elif char == "(":
                self.open_group()
            elif char == ")":
                self.close_group()
            elif char == "$":
                self.take_probed(char, _PROBE_PAST_NEWLINE)
            elif char == "^":
                self.take_assertion(char)
            elif char == "|":
                self.take(char)
                self.at_start = self.groups[-1].body_at_start if self.groups else True
            elif char == "{":
                self.count()
            elif self.verbose and (char == "#" or char.isspace()):
                self.take(source[self.position : self.end_of_blank(self.position)])
            elif char in "*+?":
                self.take(char)
            else:
                self.take_atom(char)
        if self.groups:
            self.position = self.groups[-1].opened_at
            raise PatternError("a group is never closed", source, self.position)

    def escape(self) -> None:
        source, start = self.source, self.position
        char = source[start + 1 : start + 2]
        if not char:
            raise PatternError("a lone backslash ends it", source, start)
        if char in _ASSERTION_ESCAPES:
            self.take_assertion("\\" + char)
        elif char.isdigit() and char != "0":
            self.back_reference()
        elif char == "A":
            self.take("\\A")
        elif char in _CHARACTER_ESCAPES or not (char.isalpha() or char.isdigit()):
            self.take_atom("\\" + char)
        elif code := _CODE_POINT.match(source, start + 1):
            self.take_atom("\\" + code[0])
        else:
            instead = _REFUSED_ESCAPES.get(char, "escape only what needs it")
            raise self.fail(f"the escape \\{char}", instead)

    def back_reference(self) -> None:
        end = self.position + 1
        while self.source[end : end + 1].isdigit():
            end += 1
        text = self.source[self.position : end]
        if len(text) > 3:
            raise self.fail(f"the octal escape {text}", r"write it as \xNN or \uNNNN")
        self.names_or_numbers = True
        self.take_probed(text)

    def end_of_set(self) -> int:
        source = self.source
        at = self.position + 1
        if source.startswith("^", at):
            at += 1
        if source.startswith("]", at):
            at += 1
        while at < len(source) and source[at] != "]":
            if source[at] == "\\":
                char = source[at + 1 : at + 2]
                if char.isalpha() and not (
                    char in _CHARACTER_ESCAPES or char == "b" or _CODE_POINT.match(source, at + 1)
                ):
                    raise PatternError(f"the escape \\{char} means nothing in a set", source, at)
                at += 2
            elif source[at] == "[":
                posix = _POSIX_CLASS.match(source, at)
                if posix is None:
                    raise PatternError(
                        r"sets within sets are not supported; write a literal '[' as '\['", source, at
                    )
                at = posix.end()
            else:
                at += 1
        if at >= len(source):
            raise PatternError("a set '[' is never closed", source, self.position)
        return at + 1

    def open_group(self) -> None:
        source, start = self.source, self.position
        for expression, what, instead in _REFUSED_GROUPS:
            if expression.match(source, start):
                raise self.fail(what, instead)
        if named := _NAMED_REFERENCE.match(source, start):
            self.names_or_numbers = True
            self.take_probed(named[0])
            return
        scoped = _SCOPED_FLAGS.match(source, start)
        opening = scoped or _GROUP.match(source, start)
        text = opening[0] if opening else "("
        if scoped and not set((scoped[1] or "") + (scoped[2] or "")) <= set("ims"):
            raise self.fail(f"the flags {scoped[0]}", "only i, m and s can be set for a part")
        if text == "(" and source.startswith("(?", start):
            if _GLOBAL_FLAGS.match(source, start):
                raise self.fail("flags in mid-expression", "put them at its start, or write (?i:…)")
            raise self.fail(f"the group {source[start : start + 4]}…", "use a plain group (?:…)")
        self.names_or_numbers |= text.endswith(">") and text != "(?>"
        look_behind, look_ahead = text in ("(?<=", "(?<!"), text in ("(?=", "(?!")
        backward = look_behind or (not look_ahead and bool(self.groups) and self.groups[-1].backward)
        probed_before = look_behind and not self.at_start
        if probed_before:
            self.out.append(f"(?:{_PROBE}")
        self.take(text)
        self.groups.append(
            _Group(
                body=len(self.out),
                opened_at=start,
                backward=backward,
                probed_before=probed_before,
                body_at_start=self.at_start and not backward,
                at_start_after=self.at_start and (look_behind or look_ahead),
            )
        )
        self.at_start = self.at_start and not backward

    def close_group(self) -> None:
        if not self.groups:
            raise PatternError("a ')' closes nothing", self.source, self.position)
        group = self.groups.pop()
        self.take(")")
        self.at_start = group.at_start_after
        next_at = self.end_of_blank(self.position) if self.verbose else self.position
        quantified = self.source[next_at : next_at + 1] in ("*", "+", "?", "{")
        if group.probed_before:
            self.out.append(")")
        elif quantified and not group.backward:
            self.out.insert(group.body, f"{_PROBE}(?:")
            self.out.insert(-1, ")")

    def count(self) -> None:
        count = _COUNT.match(self.source, self.position)
        if count is None:
            raise self.fail(
                "'{' that is no repeat count",
                r"write a literal brace as '\{'; fuzzy matching is not supported",
            )
        self.take(count[0])

    def end_of_blank(self, at: int) -> int:
        """The first offset from `at` on that is neither white space nor a comment (verbose mode only)."""
        source = self.source
        while at < len(source):
            if source[at].isspace():
                at += 1
            elif source[at] == "#":
                newline = source.find("\n", at)
                at = len(source) if newline < 0 else newline + 1
            else:
                break
        return at


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression taken apart: global flags, the body without them, and the body's hold form.

    joinable: whether it may stand beside others in one alternation. Group numbers would shift there, names
        might clash, and some flags can't be set for a part.
    """

    flags: str
    body: str
    hold: str
    joinable: bool

    @property
    def plain(self) -> str:
        return f"(?{self.flags}){self.body}" if self.flags else self.body

    @property
    def watching(self) -> str:
        """See `watching`, for this expression."""
        return watching(self.hold, self.flags)


def watching(hold: str, flags: str = "") -> str:
    """The watching form of a hold form: to be searched with `partial=True`."""
    return f"(?{flags})(?:{hold}){_MATCHED}" if flags else f"(?:{hold}){_MATCHED}"


def analyse(source: str) -> Expression:
    """Take `source` apart. Raises `PatternError` for what can't be decided on a growing text."""
    flags, start = "", 0
    while leading := _GLOBAL_FLAGS.match(source, start):
        if not set(leading[1]) <= set("aimsux"):
            raise PatternError(f"the flags {leading[0]}: only a, i, m, s, u and x can be set", source, start)
        flags += leading[1]
        start = leading.end()
    flags = "".join(sorted(set(flags)))
    # A comment at the end must not swallow what is put after it.
    text = source + "\n" if "x" in flags else source
    rewriter = _Rewriter(text, verbose="x" in flags, position=start)
    rewriter.run()
    joinable = not rewriter.names_or_numbers and not set(flags) & set("aux")
    return Expression(flags, text[start:], "".join(rewriter.out), joinable)
