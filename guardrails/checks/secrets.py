"""Keys, tokens and passwords that must not travel: well-known formats, assignments, random-looking words.

A format that issuers document (a prefix and a length) is enough by itself. What a format alone can't tell,
such as `password: …` or forty base64 characters, must also look random: by Shannon entropy per character, and
by how little of it is in runs of letters that words, paths and identifiers consist of.
Digests, UUIDs and encoded prose look random too and are left alone.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import regex

from guardrails.build import GuardEnvironment
from guardrails.guard import Context, Step
from guardrails.matching import FormSearch, Found, Outbox, SearchingGuard
from guardrails.private_keys import Block, PrivateKeySearch
from guardrails.remedy import Remedy
from guardrails.scan import PatternSet, StreamPattern
from guardrails.verdict import Finding
from policies.errors import Problem
from policies.explain import suggestion
from policies.spec import SecretsSpec

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of secret.

    expression: finds candidates. value: matched against a candidate, its group `value` is the secret in it;
    None where the whole candidate is. holds: whether that value is a secret after all.
    """

    name: str
    expression: str
    score: float = 1.0
    value: regex.Pattern[str] | None = None
    holds: Callable[[str], bool] | None = None

    def begins(self, candidate: str) -> bool:
        """Whether `candidate`, found by a search for several kinds, is one of this kind."""
        return regex.match(self.expression, candidate) is not None

    def secret(self, candidate: str) -> Span | None:
        """Where in `candidate` the secret is; None if there is none."""
        start, end = 0, len(candidate)
        if self.value is not None:
            match = self.value.match(candidate)
            if match is None:
                return None
            start, end = match.span("value")
        return None if self.holds and not self.holds(candidate[start:end]) else (start, end)


def entropy(text: str) -> float:
    """Shannon entropy of `text`'s characters, in bits per character."""
    total = len(text)
    return -sum(n / total * math.log2(n / total) for n in Counter(text).values())


_WORD = regex.compile(r"[A-Za-z][a-z]{3,}")


def _wordiness(text: str) -> float:
    """The fraction of `text` in runs of letters as words have them; of random base64 about a tenth."""
    return sum(len(word.group()) for word in _WORD.finditer(text)) / len(text)


_HEX_OR_UUID = regex.compile(r"[0-9a-fA-F-]+")
_INTEGRITY = regex.compile(r"(?i)(?:sha|md)[0-9]{1,3}[-_]")


def looks_random(text: str) -> bool:
    """Whether `text` (24 characters or more) was drawn rather than written."""
    if _HEX_OR_UUID.fullmatch(text) or _INTEGRITY.match(text):
        return False  # digests, commits and UUIDs are public names of things
    letters = text.rstrip("=")
    kinds = (
        any(c.isdigit() for c in letters),
        any(c.islower() for c in letters),
        any(c.isupper() for c in letters),
    )
    if not all(kinds):
        return False
    if sum(map(str.isdigit, letters)) < 2 or _wordiness(letters) > 0.4:
        return False
    enough = 4.3 if len(letters) >= 40 else 4.0 if len(letters) >= 32 else 3.7
    return entropy(letters) >= enough and not _is_encoded_prose(text)


def _is_encoded_prose(text: str) -> bool:
    try:
        raw = base64.b64decode(
            text + "=" * (-len(text) % 4), altchars=b"-_" if {"-", "_"} & set(text) else None
        )
    except (ValueError, binascii.Error):
        return False
    return len(raw) > 0 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in raw[:-2])


def _mixed(text: str) -> bool:
    """Of a prefixed key's body: digits and letters, unlike the words of a CSS class or a file's name."""
    return any(c.isdigit() for c in text) and any(c.isalpha() for c in text) and entropy(text) >= 3.0


_EXAMPLE = regex.compile(
    r"(?i)[<{\[(%$]|[*x•.]{3,}$|(?:none|null|nil|true|false|undefined|string|redacted|required|optional)$"
    r"|your[-_ ]|my[-_ ]?(?:pass|secret|key|token)|example|placeholder|change[-_]?me"
    r"|process\.env|os\.environ|getenv"
)
_WORDS = regex.compile(r"_*[A-Za-z]+(?:[-_.'’/:][A-Za-z]+)*[.,;:!?)]*")
_CALL = regex.compile(r"[A-Za-z_][\w.]*[(\[]")


def _assigned(text: str) -> bool:
    """Of what is assigned to a password: not a placeholder, a type's name or a sentence's next word."""
    if _EXAMPLE.match(text) or _CALL.match(text) or "://" in text:
        return False
    if _WORDS.fullmatch(text):
        inner = text.rstrip(".,;:!?)")
        return any(a.islower() and b.isupper() for a, b in pairwise(inner)) and entropy(inner) > 3
    return entropy(text) >= 2.0


_NAMED_AS_SUCH = frozenset(
    {"pass", "passwd", "password", "pw", "pwd", "secret", "token", "postgres", "root", "guest"}
)


def _connecting(text: str) -> bool:
    """Of an address's password: neither a placeholder nor the word itself, as manuals have it."""
    return not _EXAMPLE.match(text) and text.lower() not in _NAMED_AS_SUCH


def _bearer(text: str) -> bool:
    return any(c.isdigit() for c in text) and entropy(text) >= 3.0


_SCHEMES = (
    r"(?:postgres(?:ql)?|mysql|mariadb|mongodb|rediss?|amqps?|mssql|sqlserver|ldaps?|s?ftps?|smtps?|https?)"
)
_CONNECTION = (
    rf"(?i)(?<![A-Za-z0-9_]){_SCHEMES}(?:\+[a-z0-9]{{1,16}})?://"
    r"[^\s:/@\"'<>]{0,64}:[^\s@/\"'<>]{1,128}@[^\s\"'<>@]"
)
_BEARER = r"(?i)(?<![A-Za-z0-9_])(?:bearer|basic)[ \t]{1,4}[A-Za-z0-9._~+/-]{16,4096}={0,2}"
# After a lower-case letter only in camel case: a search that may begin within any word is a slow one.
_NAMES = (
    r"(?:(?<![A-Za-z])(?i:password|passwd|passphrase|pwd|secret|token|credentials?"
    r"|(?:api|access|auth|secret|private|account|encryption|signing)[_-]?key)"
    r"|(?<=[a-z])(?:Password|Passphrase|Secret|Token|(?:Api|Access|Auth|Private|Account)Key))"
)
_IS = r"(?:[ \t]{0,4}(?:=>|:=|=|:)[ \t]{0,4}|[ \t]is[ \t])"
_ASSIGNMENT = rf"{_NAMES}[\"'`]?{_IS}[\"'`]?[^\s\"'`,;<>]{{6,4096}}+"
_RANDOM = r"(?<![A-Za-z0-9+/_.-])(?<![?&][A-Za-z_]{1,16}=)[A-Za-z0-9+/_-]{24,256}={0,2}(?![A-Za-z0-9+/_=-])"

_TOKENS = (
    Kind("AWS_ACCESS_KEY", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9_])"),
    Kind("GITHUB_TOKEN", r"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{40,255})"),
    Kind("GITLAB_TOKEN", r"gl(?:pat|dt|rt|ptt|ft|soat|cbt|imt|agent)-[A-Za-z0-9_-]{20,128}"),
    Kind("SLACK_TOKEN", r"(?:xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,250}|xapp-[A-Za-z0-9-]{20,250})"),
    Kind("SLACK_WEBHOOK", r"https://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/]{20,120}"),
    Kind("STRIPE_KEY", r"(?:[sr]k_(?:live|test)_[A-Za-z0-9]{16,247}|whsec_[A-Za-z0-9+/]{24,80})"),
    Kind("GOOGLE_API_KEY", r"(?:AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28})(?![A-Za-z0-9_-])"),
    Kind("GOOGLE_OAUTH_TOKEN", r"ya29\.[A-Za-z0-9_-]{20,512}"),
    Kind("LLM_API_KEY", r"sk-[A-Za-z0-9_-]{20,250}", holds=_mixed),
    Kind("HUGGINGFACE_TOKEN", r"hf_[A-Za-z0-9]{30,60}"),
    Kind("NPM_TOKEN", r"npm_[A-Za-z0-9]{36}"),
    Kind("PYPI_TOKEN", r"pypi-AgE[A-Za-z0-9_-]{50,512}"),
    Kind("SENDGRID_KEY", r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"),
    Kind("TWILIO_KEY", r"SK[0-9a-f]{32}(?![A-Za-z0-9_])"),
    Kind("DIGITALOCEAN_TOKEN", r"do[opr]_v1_[a-f0-9]{64}"),
    Kind("DATABRICKS_TOKEN", r"dapi[a-f0-9]{32}(?![A-Za-z0-9_])"),
    Kind("SHOPIFY_TOKEN", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    Kind("VAULT_TOKEN", r"hv[sbr]\.[A-Za-z0-9_-]{24,200}"),
    Kind("TELEGRAM_TOKEN", r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"),
    Kind("JWT", r"eyJ[A-Za-z0-9_-]{10,2048}\.eyJ[A-Za-z0-9_-]{10,8192}(?:\.[A-Za-z0-9_-]{0,2048})?"),
)
"""Told by their format; each begins where a word begins, and so they are searched for together."""

_OTHERS = (
    Kind(
        "CONNECTION_PASSWORD",
        _CONNECTION,
        value=regex.compile(r"[^:]+://[^:]*:(?P<value>[^@]+)@"),
        holds=_connecting,
    ),
    Kind("BEARER_TOKEN", _BEARER, value=regex.compile(r"\S+[ \t]+(?P<value>.+)"), holds=_bearer),
    Kind(
        "ASSIGNED_SECRET",
        _ASSIGNMENT,
        score=0.8,
        value=regex.compile(rf"[A-Za-z_-]+[\"'`]?{_IS}[\"'`]?(?P<value>.+)"),
        holds=_assigned,
    ),
)
_HIGH_ENTROPY = Kind("HIGH_ENTROPY_STRING", _RANDOM, score=0.6, holds=looks_random)

PRIVATE_KEY = "PRIVATE_KEY"
"""Found by `guardrails.private_keys`: no expression follows a key of any length at a bounded cost."""

KINDS = (PRIVATE_KEY, *(kind.name for kind in (*_TOKENS, *_OTHERS, _HIGH_ENTROPY)))
"""What a policy may choose from; also the `entity_type` of the findings."""


class SecretsGuard(SearchingGuard):
    """The kinds that a policy asks for, and what it wants done about them."""

    def __init__(self, spec: SecretsSpec, env: GuardEnvironment) -> None:
        super().__init__(spec, env, Remedy(spec.action, env.hash_key))
        chosen = _chosen(spec)
        self.patterns, self._groups = _compiled(chosen)
        self.finds_private_keys = PRIVATE_KEY in chosen

    def examine(self, context: Context) -> SecretsExamination:
        return SecretsExamination(self)

    def read(self, text: str, found: Found) -> Iterator[Finding]:
        """What a match is after all, and where in it the secret stands."""
        group = self._groups[found.pattern]
        kind = next((kind for kind in group if kind.begins(found.text)), None) if len(group) > 1 else group[0]
        part = kind.secret(found.text) if kind else None
        if kind and part:
            start, end = found.span(*part)
            yield self.remedy.finding(self.name, kind.name, start, end, kind.score, text)

    def private_key(self, text: str, block: Block) -> Finding:
        return self.remedy.finding(self.name, PRIVATE_KEY, block.start, block.end, 1.0, text)


class SecretsExamination:
    """One text, searched for private keys and for everything that an expression can tell."""

    __slots__ = ("_guard", "_outbox", "_private_keys", "_search")

    def __init__(self, guard: SecretsGuard) -> None:
        self._guard = guard
        self._search = FormSearch(guard.patterns)
        self._private_keys = PrivateKeySearch() if guard.finds_private_keys else None
        self._outbox = Outbox()

    def advance(self, text: str, final: bool) -> Step:
        guard = self._guard
        found, settled = self._search.advance(text, final)
        for one in found:
            self._outbox.put(guard.read(text, one))
        if self._private_keys is not None:
            blocks, floor = self._private_keys.advance(text, final)
            self._outbox.put(guard.private_key(text, block) for block in blocks)
            settled = min(settled, floor)
        return Step(*self._outbox.take(settled))


def build(spec: SecretsSpec, env: GuardEnvironment) -> SecretsGuard:
    """The guard that `spec` describes."""
    return SecretsGuard(spec, env)


def problems(spec: SecretsSpec, env: GuardEnvironment) -> Iterable[Problem]:
    """Kinds that don't exist."""
    for index, name in enumerate(spec.kinds):
        if name not in KINDS:
            yield Problem(("kinds", index), f"unknown kind {name!r}{suggestion(name, KINDS)}")


def _chosen(spec: SecretsSpec) -> frozenset[str]:
    names = frozenset(spec.kinds) or frozenset(KINDS) - {_HIGH_ENTROPY.name}
    return names | {_HIGH_ENTROPY.name} if spec.entropy else names


@lru_cache(maxsize=64)
def _compiled(names: frozenset[str]) -> tuple[PatternSet, tuple[tuple[Kind, ...], ...]]:
    """The patterns for some kinds, and which kinds each pattern may have found; shared by all guards."""
    tokens = tuple(kind for kind in _TOKENS if kind.name in names)
    others = tuple((kind,) for kind in (*_OTHERS, _HIGH_ENTROPY) if kind.name in names)
    groups = ((tokens,) if tokens else ()) + others
    patterns = []
    for group in groups:
        either = "|".join(kind.expression for kind in group)
        expression = f"(?<![A-Za-z0-9_])(?:{either})" if group is tokens else either
        patterns.append(StreamPattern.compile(expression, group[0].name))
    return PatternSet(patterns), groups
