"""Sentences, mails, logs, tables and code with people, places, organisations, addresses and dates in them.

Written by a seeded program from `texts/entities.txt` and the vocabularies of `texts/people.txt`, which are
of many cultures. A part of the names is made up, so that what stands around a name has to tell it. Public
name-tagging corpora are news and tweets; people write to assistants in lower case, without punctuation,
and with first names that are also words. Texts without any name carry such words ("may", "will", "mark",
"turkey"), so that a capital letter or a known name alone decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from random import Random

from training.data.grammar import Grammar, load, read

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}(.)([^{_CLOSE}]*){_CLOSE}")
TYPES = {
    "P": "PERSON",
    "F": "PERSON",
    "L": "LOCATION",
    "A": "ADDRESS",
    "O": "ORGANIZATION",
    "D": "DATE_TIME",
    "N": "NRP",
}
Spans = list[tuple[str, int, int]]
Pool = Mapping[str, Sequence[str]]

_ONSETS = "b br c ch cr d dr f fl g gr h j k kr l m n p pr qu r s sh st t tr v w y z zh bh th".split()
_NUCLEI = "a e i o u ai ea ee ia io ou".split()
_CODAS = " n r l s t k m nd ng th x rt ll ck sh".split(" ")
_ENDINGS = (
    "son sen ez ov ova ski ska ic yan escu idis opoulos oglu berg stein man ton ley wood ford well er ini "
    "elli etti ato a o i u"
).split()
_RUE = ("rue", "avenue", "boulevard", "place", "quai")
_FIRMS = ("& sons", "and partners", "& co", "brothers", "group", "law")
_HOUSES = ("university", "bank", "museum", "college", "hospital", "institute", "city hall")


@cache
def _words(section: str) -> tuple[str, ...]:
    """A vocabulary: parted by bars, or by blanks with `_` for a blank inside."""
    text = "\n".join(read("people")[section])
    if "|" in text:
        return tuple(text.replace("\n", "|").split("|"))
    return tuple(word.replace("_", " ") for word in text.split())


@cache
def _nationality() -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(map(re.escape, _words("nrp"))) + r")s?\b", re.I)


def nationalities(text: str) -> Iterator[re.Match[str]]:
    """Where words stand that say of what people, creed or party somebody is."""
    return _nationality().finditer(text)


def title(text: str) -> str:
    """Every word with a capital, but for small words inside a name."""
    raised = re.sub(r"(?<![\w'])([a-zà-ÿ])", lambda m: m[1].upper(), text)
    return re.sub(
        r"(?<=.)\b(Of|The|And|De La|De|Da|Van Den|Van|Dos|Bin|Dela)\b(?= )", lambda m: m[1].lower(), raised
    )


def _made_up(rng: Random) -> str:
    """A word that is in no list and can be said."""
    syllables = rng.choice((1, 2, 2, 3))
    text = "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(syllables))
    return text + rng.choice(_CODAS if rng.random() < 0.6 else _ENDINGS)


def _first(rng: Random) -> str:
    return _made_up(rng) if rng.random() < 0.12 else rng.choice(_words("first"))


def _last(rng: Random) -> str:
    return _made_up(rng) if rng.random() < 0.25 else rng.choice(_words("last"))


def person(rng: Random) -> str:
    """A name in one of the forms that names have."""
    first, last = _first(rng), _last(rng)
    form = rng.choices(range(10), (30, 40, 6, 6, 4, 3, 3, 3, 2, 3))[0]
    if form == 0:
        return title(first)
    if form == 3:
        return title(last)
    if form == 4:
        return f"{title(last)}, {title(first)}"
    if form == 5:
        return f"{first[0].upper()}. {title(last)}"
    if form == 6:
        return title(f"{first} {last}-{_last(rng)}")
    if form == 7:
        return title(f"{first} {_first(rng)} {last}")
    if form == 8:
        return title(f"{first} {last}") + rng.choice((" Jr.", " Sr.", " III", ", PhD", " Jr"))
    if form == 9:
        return f"{title(first)} {title(last)[0]}."
    if form == 2:
        return title(f"{first} {rng.choice('abcdehjklmrst')}. {last}")
    return title(f"{first} {last}")


def place(rng: Random) -> str:
    """A city, country or region, sometimes two."""
    city, region = rng.choice(_words("city")), rng.choice(_words("region"))
    roll = rng.random()
    if roll < 0.1:
        city = _made_up(rng) + rng.choice(
            ("", "ville", "burg", "ton", " city", " falls", "stadt", "grad", "pur", " springs")
        )
    name = city if roll < 0.62 else region if roll < 0.9 else f"{city}, {region}"
    return title(name)


def address(rng: Random) -> str:
    """A street address, in the customs of several countries; often with postcode and city."""
    word = (
        _made_up(rng)
        if rng.random() < 0.15
        else rng.choice((*_words("street_word"), rng.choice(_words("last"))))
    )
    number = str(rng.choice((rng.randint(1, 99), rng.randint(100, 9999))))
    kind = rng.choice(_words("street_type"))
    street = rng.choices(
        (
            f"{number} {word} {kind}",
            f"{number} {rng.choice(('n', 's', 'e', 'w', 'north', 'south'))} {word} {kind}",
            f"{word}{rng.choice(('strasse', 'straße', 'weg', 'gasse', 'allee', 'platz'))} {number}",
            f"{rng.choice(_RUE)} {rng.choice(('de', 'du', 'de la', 'des'))} {word} {number}",
            f"{number} {rng.choice(('rue', 'avenue'))} {word}",
            f"{rng.choice(('via', 'viale', 'piazza', 'corso'))} {word} {number}",
            f"{rng.choice(('calle', 'avenida', 'plaza', 'paseo'))} {word} {number}",
            f"{rng.choice(('rua', 'travessa', 'avenida'))} {word} {number}",
            f"{word}{rng.choice(('straat', 'laan', 'gracht', 'weg', 'gatan', 'vej', 'katu'))} {number}",
            f"ul. {word} {number}",
            f"p.o. box {number}",
            f"flat {rng.randint(1, 40)}, {number} {word} {kind}",
            f"unit {rng.randint(1, 90)}/{number} {word} {kind}",
            f"{rng.randint(1, 9)}-{rng.randint(1, 30)}-{rng.randint(1, 20)} {word}",
        ),
        (40, 6, 8, 4, 4, 4, 4, 3, 5, 2, 3, 6, 3, 2),
    )[0]
    text = title(street)
    if rng.random() < 0.2:
        text += rng.choice(
            (
                f", Apt {rng.randint(1, 99)}",
                f" Apt. {rng.randint(1, 30)}{rng.choice('ABC')}",
                f", Suite {number}",
                f", Floor {rng.randint(1, 20)}",
                f" #{number}",
            )
        )
    if rng.random() < 0.55:
        city = title(rng.choice(_words("city")))
        code = rng.choice(
            (
                f"{rng.randint(10000, 99999)}",
                f"{rng.choice('ABEGLMNSW')}{rng.randint(1, 20)} "
                f"{rng.randint(1, 9)}{rng.choice('ABDEFGH')}{rng.choice('JLNPQRS')}",
                f"{rng.randint(1000, 9999)}",
            )
        )
        state = rng.choice("CA TX NY FL IL WA OH MA GA AZ NSW VIC ON BC".split())
        tail = rng.choices(
            (
                f", {city}",
                f", {city}, {state} {code}",
                f"\n{city}, {state} {code}",
                f", {code} {city}",
                f"\n{code} {city}",
                f", {city} {code}",
                f", {city}, {title(rng.choice(_words('region')))}",
            ),
            (4, 4, 2, 3, 1, 3, 2),
        )[0]
        text += tail
    return text


def organisation(rng: Random) -> str:
    """A known organisation, or one that is made up."""
    roll = rng.random()
    if roll < 0.4:
        return title(rng.choice(_words("org")))
    word = _made_up(rng) if rng.random() < 0.25 else rng.choice(_words("org_word"))
    kind = rng.choice(_words("org_type"))
    if roll < 0.48:
        return title(
            f"{rng.choice(_words('last'))} {rng.choice((*_FIRMS, '-' + rng.choice(_words('last'))))}"
        ).replace(" -", "-")
    if roll < 0.56:
        return title(f"{rng.choice(_HOUSES)} of {rng.choice(_words('city'))}")
    if roll < 0.64:
        return title(f"{rng.choice(_words('city'))} {kind}")
    if roll < 0.72:
        return title(f"{word} {rng.choice(_words('org_word'))} {kind}")
    if roll < 0.78:
        return "".join(rng.choice("ABCDEFGHIKLMNOPRSTUVW") for _ in range(rng.choice((3, 3, 4))))
    made = title(f"{word} {kind}")
    return re.sub(r"\b(Llc|Gmbh|Ag|Fc|Plc|Oy|Ab|Spa|B\.v\.|S\.a\.)(?=$|\b)", lambda m: m[1].upper(), made)


def moment(rng: Random) -> str:
    """A date, a time or a span of time, in words or figures."""
    day, month, year = rng.randint(1, 28), rng.choice(_words("month")), rng.randint(1940, 2026)
    number, hour = rng.randint(1, 12), rng.randint(1, 12)
    weekday = title(rng.choice(_words("weekday")))
    ordinal = f"{day}{'th' if 10 < day < 14 else ('th', 'st', 'nd', 'rd', *['th'] * 6)[day % 10]}"
    return rng.choice(
        (
            f"{title(month)} {day}, {year}",
            f"{day} {title(month)} {year}",
            f"{ordinal} of {title(month)}",
            f"{title(month)} {ordinal}",
            f"{number:02}/{day:02}/{year}",
            f"{day:02}.{number:02}.{year}",
            f"{year}-{number:02}-{day:02}",
            f"{day}/{number}/{year % 100:02}",
            f"{title(month)} {year}",
            str(year),
            weekday,
            f"last {weekday}",
            f"next {weekday}",
            f"{weekday}, {title(month)} {day}",
            f"{hour}:{rng.randint(10, 59)} {rng.choice(('am', 'pm', 'AM', 'PM'))}",
            f"{hour}{rng.choice(('am', 'pm'))}",
            f"{weekday} at {hour}",
            "today",
            "tomorrow",
            "yesterday",
            "tonight",
            "last week",
            "next month",
            "this morning",
            f"in {number} days",
            f"{number} years ago",
            f"the {rng.choice((60, 70, 80, 90))}s",
            f"{year}-{number:02}-{day:02}T{hour:02}:30:00Z",
            f"{weekday} {rng.choice(('morning', 'evening', 'night'))}",
        )
    )


def _unmarked() -> dict[str, Callable[[Random], str]]:
    digits: Callable[[Random, int], str] = lambda r, n: "".join(r.choice("0123456789") for _ in range(n))  # noqa: E731
    return {
        "num": lambda r: digits(r, r.choice((2, 3, 5, 8))),
        "year": lambda r: str(r.randint(1960, 2025)),
        "phone": lambda r: r.choice(
            (
                f"({digits(r, 3)}) {digits(r, 3)}-{digits(r, 4)}",
                f"+44 {digits(r, 4)} {digits(r, 6)}",
                f"{digits(r, 3)}-{digits(r, 4)}",
                f"0{digits(r, 9)}",
            )
        ),
        "email": lambda r: (
            f"{r.choice(_words('first'))}{r.choice(('.', '_', ''))}"
            f"{r.choice(_words('last')).replace(' ', '')}"
            f"@{r.choice(('example.com', 'mail.example', 'example.org'))}".replace("'", "")
        ),
        "ip": lambda r: ".".join(str(r.randint(1, 254)) for _ in range(4)),
        "iban": lambda r: f"DE{digits(r, 20)}",
        "card": lambda r: " ".join(digits(r, 4) for _ in range(4)),
        "ssn": lambda r: f"{digits(r, 3)}-{digits(r, 2)}-{digits(r, 4)}",
        "handle": lambda r: f"@{r.choice(_words('first'))}{digits(r, 2)}",
        "ts": lambda r: (
            f"{r.randint(2019, 2025)}-0{r.randint(1, 9)}-1{r.randint(0, 9)} "
            f"0{r.randint(0, 9)}:{r.randint(10, 59)}:{r.randint(10, 59)}"
        ),
    }


@cache
def _makers() -> dict[str, Callable[[Random], str]]:
    return {
        "P": person,
        "F": lambda r: title(_first(r)),
        "L": place,
        "A": address,
        "O": organisation,
        "D": moment,
        "N": lambda r: title(r.choice(_words("nrp"))),
    }


def _grammar(pool: Pool) -> Grammar:
    """The templates, with slots that leave a mark around what is to be found."""

    def marked(slot: str) -> Callable[[Random], str]:
        make, known = _makers()[slot], pool.get(TYPES[slot], ())

        def fill(rng: Random) -> str:
            value = rng.choice(known) if known and slot not in "FDN" and rng.random() < 0.25 else make(rng)
            if slot == "D" and not any(c.isdigit() for c in value):
                return value  # "last Monday" tells nothing about anybody
            return f"{_OPEN}{slot}{value}{_CLOSE}"

        return fill

    return load("entities", **{slot: marked(slot) for slot in TYPES}, **_unmarked())


class Chat:
    """Draws texts with their spans; `pool` adds values per entity type."""

    def __init__(self, pool: Pool, *, held_out: bool = False) -> None:
        self._grammar = _grammar(pool)
        self._held_out = held_out

    def draw(self, rng: Random) -> tuple[str, Spans]:
        """One text and its `(entity_type, start, end)` spans."""
        section = "nothing" if rng.random() < 0.2 else "template"
        text = self._grammar.expand(rng, section, held_out=self._held_out, tidy=False)
        if rng.random() < 0.2:
            more = self._grammar.expand(rng, "template", held_out=self._held_out, tidy=False)
            text += rng.choice((". ", ", ", " and ", "\n")) + more
        text = text.replace("{{", "{").replace("}}", "}")
        return _cased(rng, *unmark(text))


def unmark(text: str) -> tuple[str, Spans]:
    """The text without marks, and where they were."""
    pieces: list[str] = []
    spans: Spans = []
    length = last = 0
    for mark in _MARK.finditer(text):
        before, value = text[last : mark.start()], mark[2]
        start = length + len(before)
        spans.append((TYPES[mark[1]], start, start + len(value)))
        pieces += [before, value]
        length, last = start + len(value), mark.end()
    pieces.append(text[last:])
    return "".join(pieces), spans


def _cased(rng: Random, text: str, spans: Spans) -> tuple[str, Spans]:
    style = rng.random()
    if style < 0.33 and len(text.lower()) == len(text):
        return text.lower(), spans
    if style < 0.38 and len(text.upper()) == len(text):
        return text.upper(), spans
    return text[0].upper() + text[1:], spans
