"""Expressions for common kinds of data, by the names that Presidio gives them.

All are linear: each match begins at a token's edge and repeats are bounded or can't overlap. What a format
alone can't tell, a check decides (Luhn, ISO 7064 mod 97, a parse); it sees the matched text and answers
with the part of it that is meant, or None.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import regex

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Builtin:
    """`narrow` is given a match's text and answers with the span in it that is the thing, None if none is."""

    entity_type: str
    expression: str
    score: float = 1.0
    narrow: Callable[[str], Span | None] | None = None


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for index, digit in enumerate(map(int, reversed(digits))):
        total += digit if index % 2 == 0 else (digit * 2 - 9 if digit > 4 else digit * 2)
    return total % 10 == 0


def _card(text: str) -> Span | None:
    """The longest beginning that ends with a group of digits, is as long as a card's number, and checks."""
    for end in _group_ends(text):
        digits = regex.sub(r"\D", "", text[:end])
        if 13 <= len(digits) <= 19 and luhn(digits):
            return 0, end
    return None


def _iban(text: str) -> Span | None:
    """The longest beginning, in whole groups, whose check digits are right (ISO 13616)."""
    for end in _group_ends(text):
        code = text[:end].replace(" ", "")
        if 15 <= len(code) <= 34:
            number = "".join(str(int(char, 36)) for char in code[4:] + code[:4])
            if int(number) % 97 == 1:
                return 0, end
    return None


def _group_ends(text: str) -> list[int]:
    return [len(text), *sorted((m.start() for m in regex.finditer(r"[ -]", text)), reverse=True)]


def _ip(text: str) -> Span | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # `::` and `a::b` stand in code far more often than in talk of addresses.
    return (0, len(text)) if address.version == 4 or any(c.isdigit() for c in text) else None


def _url(text: str) -> Span | None:
    """Without the punctuation of the sentence that it stands in."""
    end = len(text.rstrip(".,;:!?'\"*_"))
    while end and text[end - 1] == ")" and text.count("(", 0, end) < text.count(")", 0, end):
        end = len(text[: end - 1].rstrip(".,;:!?'\"*_"))
    return (0, end) if end else None


# Each begins with \b and a character, where it can: that is told fastest at the many places where nothing
# begins. What must not stand before is looked at next, where little is left to look at.
_EMAIL = (
    r"\b\w[\w.%+-]{0,63}(?<!\.)@"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_](?:[\w-]{0,22}[^\W_])(?![\w-])"
)
_SSN = r"\b[0-8][0-9]{2}(?<!000|666|-[0-9]{3})(?:-[0-9]{2}-| [0-9]{2} )(?<!00.)[0-9]{4}(?<!0000)(?![\w-])"
_IP = (
    r"(?:\b[0-9]{1,3}(?<!\.[0-9]{1,3})(?:\.[0-9]{1,3}){3}(?![\w-])(?!\.[0-9])"
    r"|\b[0-9A-Fa-f]{1,4}(?<!:[0-9A-Fa-f]{1,4}):(?:[0-9A-Fa-f]{0,4}:){1,6}(?:[0-9A-Fa-f]{1,4})?(?![\w:])"
    r"|::(?<![\w:]::)(?:[0-9A-Fa-f]{1,4}:){0,6}[0-9A-Fa-f]{1,4}(?![\w:]))"
)
_PHONE = (
    r"(?:\+[0-9](?<!\w\+.)(?:[ .()-]{0,2}[0-9]){7,14}(?![0-9])"
    r"|\b[0-9](?<![.+-].)(?:[ .-][0-9]{3}|[0-9]{2})[ .-][0-9]{3}[ .-][0-9]{4}(?![\w-])"
    r"|\([0-9]{3}\) ?[0-9]{3}[ .-][0-9]{4}(?![\w-]))"
)
_MAC = (
    r"(?i)\b[0-9a-f]{2}(?<![:-]..)"
    r"(?:(?::[0-9a-f]{2}){5}(?![\w:])|(?:-[0-9a-f]{2}){5}(?![\w-]))"
)
_ALL = (
    Builtin("EMAIL_ADDRESS", _EMAIL),
    Builtin("US_SSN", _SSN, 0.85),
    Builtin("CREDIT_CARD", r"\b[2-6][0-9]{3}(?:[ -]?[0-9]){9,15}(?!\w)", narrow=_card),
    Builtin("IP_ADDRESS", _IP, 0.95, narrow=_ip),
    Builtin("PHONE_NUMBER", _PHONE, 0.75),
    Builtin("IBAN_CODE", r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", narrow=_iban),
    Builtin("URL", r"(?i)\b(?:https?|ftp)://[^\s<>\"`{}|\\^]{1,2048}", 0.9, narrow=_url),
    Builtin("MAC_ADDRESS", _MAC),
)
BUILTINS = MappingProxyType({builtin.entity_type: builtin for builtin in _ALL})
"""By entity type."""
