"""The hold-back against brute force: what is called settled stays so under every extension of the text."""

from __future__ import annotations

import itertools

import pytest
import regex
from hypothesis import assume, given
from hypothesis import strategies as st

from guardrails.expressions import analyse
from guardrails.guard import JobError
from guardrails.scan import Match, PatternError, PatternSet, Scanner, StreamPattern
from tests.guardrails.scripted import cases

ALPHABET = "ab1 \n"
EXTENSIONS = ["".join(p) for n in (1, 2, 3) for p in itertools.product(ALPHABET, repeat=n)] + [
    "abab1",
    "aa aa\n",
    "1" * 6,
]

ATOMS = [
    "a", "b", "1", " ", r"\n", ".", "[ab]", "[^a]", r"\w", r"\d", r"\s", r"\S", "ab", "a1b", "A", r"[^\s1]",
    r"\x61", "a*", ".*", r"\w+", "b?", ".*?", r"\w++", "[ab]{1,2}", "(?s:.)", "(?i:AB)", "(?-i:a)", "",
]  # fmt: skip
ASSERTIONS = ["^", "$", r"\A", r"\Z", r"\b", r"\B", r"\m", r"\M"]
QUANTIFIERS = ["*", "+", "?", "{2}", "{1,2}", "{2,}", "*?", "+?", "??", "*+", "++", "?+", "{,2}+"]


@st.composite
def expressions(draw: st.DrawFn) -> str:
    """Every supported construct, nested."""
    groups = 0

    def build(depth: int) -> str:
        nonlocal groups
        kind = draw(st.integers(0, 9 if depth else 2))
        if kind <= 1:
            return draw(st.sampled_from(ATOMS))
        if kind == 2:
            return draw(st.sampled_from(ASSERTIONS))
        if kind <= 4:
            return build(depth - 1) + build(depth - 1)
        if kind == 5:
            return f"(?:{build(depth - 1)}|{build(depth - 1)})"
        if kind <= 7:
            opening = draw(st.sampled_from(["(?:", "(", "(?>"]))
            body = build(depth - 1)
            groups += opening == "("
            return f"{opening}{body}){draw(st.sampled_from(QUANTIFIERS))}"
        if kind == 8 and groups:
            return rf"\{draw(st.integers(1, groups))}"
        return f"{draw(st.sampled_from(['(?=', '(?!', '(?<=', '(?<!', '(?>']))}{build(depth - 1)})"

    flags = draw(st.sampled_from(["", "", "(?i)", "(?m)", "(?s)", "(?ms)", "(?x)"]))
    return flags + build(draw(st.integers(1, 4)))


texts = st.text(ALPHABET, max_size=7)


def pattern_for(source: str) -> StreamPattern:
    try:
        return StreamPattern.compile(source, "p")
    except PatternError as error:
        # What these strategies build may be refused by the engine (a repeat of nothing), but not by Keel.
        assert error.position is None, error
        assume(False)
        raise


def outcome(pattern: StreamPattern, text: str, start: int) -> object:
    match = pattern.plain.match(text, start, timeout=1)
    return match and (match.span(), match.groups())


OPEN = object()


def seen(pattern: StreamPattern, text: str, start: int) -> object:
    """What the watching form says about one start."""
    match = pattern.watching.match(text, start, partial=True, timeout=1)
    if match is None:
        return None
    assert match.partial, "the watching form never matches"
    end = match.end(pattern.watching.groups)
    return OPEN if end < 0 else ((start, end), match.groups()[:-1])


@cases(300)
@given(expressions(), st.lists(texts, min_size=1, max_size=3))
def test_what_is_said_of_a_start_holds_in_every_extension(source: str, samples: list[str]) -> None:
    pattern = pattern_for(source)
    for text in samples:
        try:
            said = {start: seen(pattern, text, start) for start in range(len(text))}
            for start in said:
                # What a search passes over is certain not to match. It may know more than a walk from there,
                # by looking first at the character that must come.
                match = pattern.watching.search(text, start, partial=True, timeout=1)
                said |= dict.fromkeys(range(start, len(text) if match is None else match.start()))
            for extension in EXTENSIONS:
                for start, certain in said.items():
                    if certain is not OPEN:
                        assert outcome(pattern, text + extension, start) == certain, (text, extension, start)
        except TimeoutError:
            return


def reference(source: str, text: str) -> list[tuple[int, int]]:
    """finditer's matches, empty ones ignored."""
    compiled, found, at = regex.compile(source), [], 0
    while at < len(text) and (match := compiled.search(text, at, timeout=1)):
        start, at = match.span()
        if at > start:
            found.append((start, at))
        else:
            at += 1
    return found


@cases(300)
@given(
    st.lists(expressions(), min_size=1, max_size=3),
    st.text(ALPHABET, max_size=40),
    st.sets(st.integers(0, 40)),
)
def test_matches_are_those_of_a_search_of_the_whole_text(
    sources: list[str], text: str, cuts: set[int]
) -> None:
    patterns = PatternSet([pattern_for(source) for source in sources])
    scanner = Scanner(patterns)
    found: list[Match] = []
    settled = 0
    try:
        expected = [(i, *span) for i, source in enumerate(sources) for span in reference(source, text)]
        for cut in [*sorted(cut for cut in cuts if cut <= len(text)), None]:
            matches, now = scanner.advance(text if cut is None else text[:cut], final=cut is None)
            assert now >= settled
            assert all(match.start >= settled for match in matches)
            found += matches
            settled = now
    except (TimeoutError, JobError):
        return
    assert settled == len(text)
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("source", "text", "settled"),
    [
        (r"foo", "a fo", 2),
        (r"foo", "a foo", 5),  # complete: nothing that follows can change it
        (r"\bfoo\b", "a foo", 2),
        (r"\d{3}\B", "x123", 1),  # \B fails at the end of the text, and not before a digit
        (r"a(?!b)", "xa", 1),
        (r"a(?!\d{3}\b)", "a123", 0),
        (r"x$", "x\n", 0),  # `$` holds before a last newline
        (r"x\Z", "x", 0),
        (r"(?:ab)*+c", "zabab", 1),
        (r"(?:ab)*(?<=zz)c", "qab", 1),  # nothing but a look-behind follows the repeat
        (r"(x)|ab\1", "qab", 1),
        (r"(?=abc)a", "zab", 1),
        (r"(?i)project\s+zephyr", "the Project  ", 4),
        (r"(?s)begin.*end", "a begin b c d", 2),
        (r"(?s)begin.*?end", "a begin b end d", 15),  # the shortest is certain, whatever follows
        (r"(?:ab){2}", "abab", 4),
        (r"(?:ab){2,3}", "abab", 0),
    ],
)
def test_how_much_is_held(source: str, text: str, settled: int) -> None:
    scanner = Scanner(PatternSet([StreamPattern.compile(source, "p")]))
    assert scanner.advance(text, False)[1] == settled


@pytest.mark.parametrize(
    ("source", "message", "column"),
    [
        (r"a\X", "grapheme", 2),
        (r"(?i)a\X", "grapheme", 6),
        (r"a(?R)b", "recursive", 2),
        (r"(a)(?1)", "recursive", 4),
        (r"(?:cat){e<=1}", "fuzzy", 8),
        (r"foo\Kbar", "look-behind", 4),
        (r"\Gfoo", "leave it out", 1),
        (r"\L<words>", "words", 1),
        (r"(a)?(?(1)b|c)", "conditional", 5),
        (r"(?|(a)|(b))", "branch-reset", 1),
        (r"a(*SKIP)b", "verbs", 2),
        (r"foo(?i)bar", "start", 4),
        (r"(ab)(?#twice){2}", "comment", 5),
        (r"(?r)foo", r"flags \(\?r\)", 1),
        (r"(?V1)foo", r"flags \(\?V1\)", 1),
        (r"(?i)(?w)\bfoo", r"flags \(\?w\)", 5),
        (r"(?f:foo)", "only i, m and s", 1),
        (r"[[a-z]--[aeiou]]", "sets within sets", 2),
        (r"[a-z", "never closed", 1),
        (r"(foo", "never closed", 1),
        (r"foo)", "closes nothing", 4),
        (r'{"a"', "literal brace", 1),
        (r"foo\q", r"escape \\q", 4),
        (r"a\123", "octal", 2),
        (r"\g<1>(a)", "write", 1),
        ("foo\\", "backslash", 4),
    ],
)
def test_what_is_refused_says_where_and_why(source: str, message: str, column: int) -> None:
    with pytest.raises(PatternError, match=message) as caught:
        StreamPattern.compile(source, "p")
    assert f"column {column} " in str(caught.value)


@pytest.mark.parametrize("source", [r"a**", r"(?<n>a)(?<n", r"[z-a]", r"a{3,1}", r"\p{Nonsense}", r"*a"])
def test_syntax_errors_are_pattern_errors(source: str) -> None:
    with pytest.raises(PatternError):
        StreamPattern.compile(source, "p")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"[]a]+", "x]a]"), (r"[^]]+", "ab]"), (r"[\]\[]+", "[]"), (r"[[:alpha:]]+", "ab1"), (r"\{\}", "{}"),
        (r"(?x) a  b # and a comment (", "ab"), (r"(?x)(?:a b) * # (\n c", "ababc"),
        (r"\N{DIGIT ONE}\u0061\U0001F600", "1a\U0001f600"), (r"\pL\p{Lu}", "aB"), (r"(?P<n>a)(?P=n)", "aa"),
        (r"(?<n>a)b", "ab"), (r"(?i-s:A.)b", "a b"), (r"\.\*\-\ \@", ".*- @"), (r"a|", "ba"), (r"\0", "\0"),
    ],
)  # fmt: skip
def test_unusual_syntax_means_what_it_means_to_the_engine(source: str, text: str) -> None:
    pattern = StreamPattern.compile(source, "p")
    scanner, found = Scanner(PatternSet([pattern, StreamPattern.compile("zzz", "other")])), []
    for end in range(1, len(text) + 1):
        found += scanner.advance(text[:end], False)[0]
    found += scanner.advance(text, True)[0]
    assert [(m.start, m.end) for m in found] == reference(source, text)
    assert found


def test_a_runaway_search_is_a_timeout_not_a_hang() -> None:
    scanner = Scanner(PatternSet([StreamPattern.compile(r"(a|aa|a.)+$x", "p")]))
    with pytest.raises(JobError) as caught:
        scanner.advance("a" * 60 + "!", True)
    assert caught.value.reason == "timeout"


def test_the_hold_form_probes_each_assertion_and_repeat_once() -> None:
    assert analyse(r"a+[b-d]{2}c").hold == r"a+[b-d]{2}c", "single characters need no probe"
    assert analyse(r"(?:ab)+\b").hold == r"(?:(?=(?s:.)|)(?:ab))+(?:(?=(?s:.)|)\b)"


def test_names_and_numbers_of_groups_keep_expressions_apart() -> None:
    sources = [r"(?P<n>a)b(?P=n)", r"(?P<n>c)", r"[(?P<n>]d", r"(e)\1", r"(?x) f # (?P<n>"]
    patterns = PatternSet([StreamPattern.compile(source, "p") for source in sources])
    assert patterns.joint is None
    text = "aba c Pd (d ee f"
    found = Scanner(patterns).advance(text, False)[0]
    assert {text[match.start : match.end] for match in found} == {"aba", "c", "Pd", "(d", "ee", "f"}


def test_a_fork_goes_on_where_the_original_stood() -> None:
    scanner = Scanner(PatternSet([StreamPattern.compile(r"ab+", "p")]))
    assert scanner.advance("abb a", False) == ([Match(0, 0, 3)], 4)
    fork = scanner.fork()
    assert fork.advance("abb abc", False) == ([Match(0, 4, 6)], 7)
    assert scanner.advance("abb ax", False) == ([], 6)
