"""Texts with made-up personal data, true checksums included, written by a seeded program."""

from __future__ import annotations

import hashlib
from random import Random

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_WORDS = (
    "the report about our river journey was finished late and nobody knew whether it would arrive in time "
    "for her meeting please send me all of it when you can because we need three or four more days to check "
    "call number card account bank phone email address social security insurance passport license"
).split()
_LEADS = (
    "My email is",
    "write to",
    "Reach me at",
    "phone:",
    "Call",
    "my telephone number is",
    "SSN",
    "social security number",
    "The card (visa) is",
    "credit card",
    "Pay to IBAN",
    "bank account",
    "server ip",
    "bitcoin wallet",
    "see",
    "",
    "routing number",
    "itin",
    "passport no.",
    "id=",
    '"contact": "',
)


_SURROUNDINGS = ["{}", "{}", "({})", "<{}>", "{},", "{}.", "'{}'", "x{}", "{}y", "[{}]"]


def _digits(random: Random, count: int) -> str:
    return "".join(random.choice("0123456789") for _ in range(count))


def email(random: Random) -> str:
    user = random.choice("jane.doe j_smith info o'brien x+tag a Max-Muster étienne".split())
    host = random.choice("example.com mail.example.co.uk xn--80ak6aa92e.com corp.internal x.org".split())
    return f"{user}@{host}"


def phone(random: Random) -> str:
    a, b, c = (
        f"{random.randint(201, 989)}",
        f"{random.randint(200, 999)}",
        _digits(random, 4),
    )
    number = random.choice(
        [
            f"({a}) {b}-{c}",
            f"{a}-{b}-{c}",
            f"{a}.{b}.{c}",
            f"+1 {a} {b} {c}",
            f"1-{a}-{b}-{c}",
            f"{a}{b}{c}",
            f"+44 20 7946 0{_digits(random, 3)}",
            f"+49 30 {_digits(random, 7)}",
            f"030/{_digits(random, 7)}",
            f"+33 1 42 68 {_digits(random, 2)} {_digits(random, 2)}",
        ]
    )
    return number + random.choice(["", "", "", " ext. 12", " x34", ", extension 5", "#12"])


def ssn(random: Random) -> str:
    separator = random.choice(["-", "-", " ", ".", ""])
    return separator.join([f"{random.randint(1, 899):03}", f"{random.randint(1, 99):02}", _digits(random, 4)])


def itin(random: Random) -> str:
    return f"9{_digits(random, 2)}-{random.choice(['70', '88', '95', '52'])}-{_digits(random, 4)}"


def card(random: Random) -> str:
    body = random.choice(["4", "51", "37", "6011"])
    body += _digits(random, (14 if body == "37" else 15) - len(body))
    total = 0
    for index, digit in enumerate(reversed(body)):
        value = int(digit) * (2 if index % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    number = body + str(-total % 10)
    if random.random() < 0.1:
        number = number[:-1] + str((int(number[-1]) + 1) % 10)
    separator = random.choice(["", " ", "-"])
    return separator.join(number[i : i + 4] for i in range(0, len(number), 4))


def iban(random: Random) -> str:
    bban = _digits(random, 18)
    remainder = int("".join(str(int(c, 36)) for c in bban + "DE00")) % 97
    number = f"DE{98 - remainder:02}{bban}"
    text = " ".join(number[i : i + 4] for i in range(0, 22, 4)) if random.random() < 0.5 else number
    return text + random.choice(["", "", " 2 days", " X"])


def ip(random: Random) -> str:
    return random.choice(
        [
            ".".join(str(random.randint(0, 255)) for _ in range(4)),
            f"10.0.{random.randint(0, 255)}.0/24",
            "2001:db8::ff00:42:8329",
            "::1",
            "fe80::1ff:fe23:4567:890a",
        ]
    )


def bitcoin(random: Random) -> str:
    payload = b"\0" + random.randbytes(20)
    check = hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]
    number, text = int.from_bytes(payload + check, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" + text


def other(random: Random) -> str:
    return random.choice(
        [
            _digits(random, random.randint(1, 18)),
            f"{random.randint(1, 28)}/{random.randint(1, 12)}/{random.randint(1950, 2030)}",
            f"2024-0{random.randint(1, 9)}-12 08:{random.randint(10, 59)}",
            f"${random.randint(1, 9999)}.{random.randint(10, 99)}",
            f"AB{_digits(random, 6)}",
            f"{_digits(random, 3)} {_digits(random, 3)} {_digits(random, 4)}",
            "00:1a:2b:3c:4d:5e",
            "deadbeef-dead-4ead-beef-deadbeefdead",
            "https://www.example.com/path?x=1",
            "pages 211-227 (2003)",
            f"{random.randint(1, 99)} - {random.randint(100, 999)}-{_digits(random, 4)}",
        ]
    )


KINDS = (email, phone, ssn, itin, card, iban, ip, bitcoin, other)


def text(random: Random) -> str:
    """A few sentences with something in them that is, or looks like, personal data."""
    parts: list[str] = []
    for _ in range(random.randint(1, 5)):
        parts.append(" ".join(random.choice(_WORDS) for _ in range(random.randint(0, 14))))
        parts.append(random.choice(_LEADS))
        value = random.choice(KINDS)(random)
        parts.append(
            random.choice(["{}", "{}", "({})", "<{}>", "{},", "{}.", "'{}'", "x{}", "{}y", "[{}]"]).format(
                value
            )
        )
    separators = [" ", " ", " ", "\n", ""]
    return "".join(part + random.choice(separators) for part in parts if part)
