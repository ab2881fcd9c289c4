"""Secrets: what is one, what only looks like one, and the same on every stream."""

from __future__ import annotations

import base64
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.apply import apply
from guardrails.build import GuardEnvironment
from guardrails.checks.secrets import KINDS, build, entropy, looks_random, problems
from guardrails.guard import Context
from guardrails.private_keys import MAX_BLOCK
from guardrails.verdict import Action, Finding, Verdict
from policies.registry import Registry
from policies.spec import SecretsSpec

ENV = GuardEnvironment(Registry("nowhere"), hash_key=b"test key")
GUARD = build(SecretsSpec(), ENV)
_RANDOM = random.Random(7)
UUID = "550e8400-e29b-41d4-a716-446655440000"


def some(length: int, alphabet: str = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789") -> str:
    return "".join(_RANDOM.choices(alphabet, k=length))


def hexadecimal(length: int) -> str:
    return some(length, "0123456789abcdef")


def findings(text: str) -> list[Finding]:
    step = GUARD.examine(Context()).advance(text, True)
    assert step.settled == len(text)
    return sorted(step.findings)


def redacted(text: str) -> str:
    return apply(text, Verdict.of(findings(text)))


def pem(kind: str, lines: int, newline: str = "\n", headers: str = "") -> str:
    body = newline.join(some(64) for _ in range(lines))
    return f"-----BEGIN {kind}-----{newline}{headers}{body}{newline}{some(20)}=={newline}-----END {kind}-----"


# Put together at run time, so that no scanner takes this file for a leak.
TOKENS = {
    "AWS_ACCESS_KEY": "AKIA" + some(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"),
    "GITHUB_TOKEN": "gh" + "p_" + some(36),
    "GITLAB_TOKEN": "glp" + "at-" + some(20),
    "SLACK_TOKEN": "xo" + "xb-123456789012-1234567890123-" + some(24),
    "SLACK_WEBHOOK": "https://hooks.slack" + ".com/services/T0123ABCD/B0123ABCD/" + some(24),
    "STRIPE_KEY": "sk_" + "live_" + some(24),
    "GOOGLE_API_KEY": "AIz" + "a" + some(35),
    "GOOGLE_OAUTH_TOKEN": "ya" + "29." + some(60),
    "LLM_API_KEY": "sk-" + "proj-" + some(48),
    "HUGGINGFACE_TOKEN": "h" + "f_" + some(34),
    "NPM_TOKEN": "np" + "m_" + some(36),
    "PYPI_TOKEN": "pyp" + "i-AgEIcHlwaS5vcmc" + some(70),
    "SENDGRID_KEY": "S" + "G." + some(22) + "." + some(43),
    "TWILIO_KEY": "S" + "K" + hexadecimal(32),
    "DIGITALOCEAN_TOKEN": "do" + "p_v1_" + hexadecimal(64),
    "DATABRICKS_TOKEN": "da" + "pi" + hexadecimal(32),
    "SHOPIFY_TOKEN": "shp" + "at_" + hexadecimal(32),
    "VAULT_TOKEN": "hv" + "s." + some(60),
    "TELEGRAM_TOKEN": "1234567890:A" + "A" + some(33),
    "JWT": "ey" + "JhbGciOiJIUzI1NiJ9.ey" + "JzdWIiOiIxMjM0NTY3ODkwIn0." + some(43),
    "HIGH_ENTROPY_STRING": base64.b64encode(_RANDOM.randbytes(30)).decode(),
    "PRIVATE_KEY": pem("RSA PRIVATE KEY", 12),
}


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize(
    "around", ["{}", "Here it is: {} – keep it.", '{{"value": "{}"}}', "x={}\n", "({}).", "`{}`"]
)
def test_every_known_format_is_found_whole(kind: str, around: str) -> None:
    text = around.format(TOKENS[kind])
    found = [finding for finding in findings(text) if finding.entity_type == kind]
    assert [text[finding.start : finding.end] for finding in found] == [TOKENS[kind]]
    assert TOKENS[kind] not in redacted(text)


@pytest.mark.parametrize(
    ("text", "secret", "kind"),
    [
        ("password = 'hunter2x!'", "hunter2x!", "ASSIGNED_SECRET"),
        ("DB_PASSWORD=correct-horse-77", "correct-horse-77", "ASSIGNED_SECRET"),
        ('{"apiKey": "9f8b7c6d5e4f"}', "9f8b7c6d5e4f", "ASSIGNED_SECRET"),
        (f"the api_key: {UUID}", UUID, "ASSIGNED_SECRET"),
        ("my password is Tr0ub4dor&3, ok?", "Tr0ub4dor&3", "ASSIGNED_SECRET"),
        ("userPassword := `s3cr3t-value`", "s3cr3t-value", "ASSIGNED_SECRET"),
        (f"aws_secret_access_key = {'kT7Q/' * 8}", "kT7Q/" * 8, "ASSIGNED_SECRET"),
        ("postgresql+asyncpg://bob:s3cr3t@db.internal:5432/x", "s3cr3t", "CONNECTION_PASSWORD"),
        ("redis://:p4ssw0rd@10.0.0.1/0", "p4ssw0rd", "CONNECTION_PASSWORD"),
        ("Authorization: Bearer abcDEF123456ghiJKL789", "abcDEF123456ghiJKL789", "BEARER_TOKEN"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZDE=", "dXNlcjpwYXNzd29yZDE=", "BEARER_TOKEN"),
    ],
)  # fmt: skip
def test_only_the_value_is_the_secret(text: str, secret: str, kind: str) -> None:
    found = [finding for finding in findings(text) if finding.entity_type == kind]
    assert [text[finding.start : finding.end] for finding in found] == [secret]


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog, twice a day since 1999.",
        "commit 9fceb02d0ae598e95dc970b74767f19372d61af8 fixes it",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha512-oqVuAfXRKap7fdgcCY5uykM6+R9GqQ8K/uxy9rx7HNQlGYl1kPzQho1wx4JwY8wCEi7vR3DBNqEFLy6TTdQPnw==",
        f"id {UUID} was created",
        "class _V2BeforeAfterOrPlainValidatorType2Factory3: ...",
        "see src/components/ButtonGroup2/IndexPage3/styles.module4.css",
        "pip install sentence-transformers/all-MiniLM-L6-v2",
        '<div class="sk-toggleable__content sk-estimator-doc-link">',
        "password: required",
        "Password: Must contain a digit.",
        "password = os.environ['DB_PASSWORD']",
        "password = get_password(user_id_7)",
        "api_key = <YOUR_API_KEY_2>",
        "token: ${GITHUB_TOKEN_1}",
        "secret = your-secret-key-123",
        "PASSWORD=changeme123",
        "password=********",
        "max_tokens: 4096000000",
        "The token is returned by login.",
        "the secret is 42",
        "https://user:password@example.com/",
        "https://example.com:8080/path@2x.png",
        "Bearer authentication-and-authorization is explained below",
        "A file that begins with -----BEGIN RSA PRIVATE KEY----- holds a key in base64.",
        "-----BEGIN CERTIFICATE-----\nMIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG\n-----END CERTIFICATE-----\n"[:40],
        base64.b64encode(b"Hello there, this is some plain text that I have encoded for you.").decode(),
    ],
)
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    assert findings(text) == []


@pytest.mark.parametrize("kind", ["RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\\n", "\n    ", "\n> "])
def test_private_keys_go_from_begin_to_end(kind: str, newline: str) -> None:
    text = f"Look:\n{pem(kind, 25, newline)}\nThat was it."
    assert redacted(text) == "Look:\n[PRIVATE_KEY]\nThat was it."


def test_private_keys_with_headers_on_one_line_or_cut_short() -> None:
    encrypted = pem(
        "RSA PRIVATE KEY", 5, headers="Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,2D1CEC8A04F33F\n\n"
    )
    assert redacted(f"a {encrypted} z") == "a [PRIVATE_KEY] z"
    one_line = f"-----BEGIN PRIVATE KEY-----{some(1600)}-----END PRIVATE KEY-----"
    assert redacted(f"a {one_line} z") == "a [PRIVATE_KEY] z"
    begun = "-----BEGIN PRIVATE KEY-----\n" + "\n".join(some(64) for _ in range(4))
    assert redacted(f"{begun}\n\nand then prose") == "[PRIVATE_KEY]\n\nand then prose"


def test_an_endless_key_waits_for_no_more_than_its_bound() -> None:
    text = "-----BEGIN PRIVATE KEY-----\n" + "\n".join(some(64) for _ in range(1000))
    examination = GUARD.examine(Context())
    steps = [examination.advance(text[:end], False) for end in range(0, len(text), 16)]
    assert all(16 * n - step.settled <= MAX_BLOCK + 64 for n, step in enumerate(steps))
    last = examination.advance(text, True)
    told = [finding for step in [*steps, last] for finding in step.findings]
    assert sorted(told) == findings(text)
    keys = sorted(finding for finding in told if finding.entity_type == "PRIVATE_KEY")
    assert len(keys) > 3 and keys[0].start == 0 and keys[-1].end == len(text)
    assert all(one.end == other.start for one, other in pairwise(keys)), "nothing between them gets out"


def test_a_secret_in_disguise_is_found() -> None:
    token = TOKENS["GITHUB_TOKEN"]
    hidden = "\u200b".join(token)
    text = f"take {hidden} now"
    assert [text[f.start : f.end] for f in findings(text) if f.entity_type == "GITHUB_TOKEN"] == [hidden]


def test_nothing_of_prose_is_held_beyond_the_current_word() -> None:
    text = (
        "The secret of a good password, said the keeper of the token, is that the key: time – is long. " * 3
    )
    examination = GUARD.examine(Context())
    for end in range(len(text) + 1):
        settled = examination.advance(text[:end], False).settled
        held = text[settled:end]
        names = ("secret", "password", "token", "key")
        assert len(held.split()) <= 1 or held.lower().startswith(names), held


@pytest.mark.parametrize("action", ["allow", "redact", "mask", "hash", "escalate", "block"])
def test_actions(action: str) -> None:
    guard = build(SecretsSpec(action=action, label="keys"), ENV)  # type: ignore[arg-type]
    finding = next(iter(guard.examine(Context()).advance(TOKENS["NPM_TOKEN"], True).findings))
    expected = {"allow": Action.ALLOW, "escalate": Action.ESCALATE, "block": Action.BLOCK}.get(
        action, Action.REDACT
    )
    assert (finding.guard, finding.action, guard.action) == ("keys", expected, expected)
    assert guard.changes_text == (action in ("redact", "mask", "hash"))
    assert finding.mask == (action == "mask")
    assert (finding.replacement or "").startswith(
        {"redact": "[NPM_TOKEN]", "hash": "[NPM_TOKEN:"}.get(action, "")
    )


def test_hashes_depend_on_the_key_and_the_value() -> None:
    def shown(key: bytes, text: str) -> str:
        guard = build(SecretsSpec(action="hash"), GuardEnvironment(Registry("nowhere"), hash_key=key))
        return apply(text, Verdict.of(guard.examine(Context()).advance(text, True).findings))

    one, other = TOKENS["NPM_TOKEN"], "np" + "m_" + some(36)
    assert shown(b"k", one) == shown(b"k", one) != shown(b"k", other)
    assert shown(b"k", one) != shown(b"l", one) and one not in shown(b"k", one)


def test_kinds_can_be_chosen() -> None:
    guard = build(SecretsSpec(kinds=("JWT",), entropy=False), ENV)
    text = " ".join(TOKENS.values())
    assert {f.entity_type for f in guard.examine(Context()).advance(text, True).findings} == {"JWT"}
    told = list(problems(SecretsSpec(kinds=("JWT", "github_tokn")), ENV))
    assert told[0].loc == ("kinds", 1) and "did you mean 'GITHUB_TOKEN'?" in told[0].message
    assert list(problems(SecretsSpec(kinds=tuple(KINDS)), ENV)) == []


def test_randomness() -> None:
    assert entropy("aaaa") == 0.0 and entropy("abcd") == 2.0
    drawn = [base64.b64encode(_RANDOM.randbytes(30)).decode() for _ in range(300)]
    assert sum(map(looks_random, drawn)) > 280


_PIECES = st.sampled_from(
    [
        *TOKENS.values(),
        *(token[: len(token) // 2] for token in TOKENS.values()),
        "password = 'hunter2x!'", "my password is ", "Bearer ", "postgres://a:b4d@c", " and ", "\n", ".",
        "é", "\u200b", "token", ": ", "-----BEGIN ", "PRIVATE KEY-----", "-----END X-----",
        some(64), some(15), "\\n", "=", pem("EC PRIVATE KEY", 400),
    ]
)  # fmt: skip


@given(pieces=st.lists(_PIECES, max_size=6), cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_a_stream_finds_what_the_whole_text_has(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    whole = GUARD.examine(Context()).advance(text, True)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    examination, told, settled = GUARD.examine(Context()), [], 0
    for _, end in pairwise([0, *edges]):
        step = examination.advance(text[:end], False)
        assert settled <= step.settled <= end
        assert all(settled <= finding.start and finding.end <= step.settled for finding in step.findings)
        told += step.findings
        settled = step.settled
    step = examination.advance(text, True)
    assert all(finding.start >= settled for finding in step.findings)
    assert sorted([*told, *step.findings]) == sorted(whole.findings)
