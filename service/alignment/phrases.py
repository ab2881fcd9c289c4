"""Automata over UTF-8 bytes that find phrases however a tokenizer cuts them, whatever their case.

A phrase is compared by Unicode case folding (`str.casefold`), so "STRASSE" and "Straße" are one phrase. Each
phrase becomes a chain of nodes; from the node at position i of the folded phrase, every character whose own
folding stands at i leads on, spelled out in its UTF-8 bytes. The chains of all phrases are determinised
together by subset construction (Rabin and Scott 1959), with a search that begins anew at every character, as
Aho and Corasick (1975) do for plain strings.

`whole_words` asks for a boundary on both sides of a phrase that begins or ends with a letter or digit of a
script that writes spaces: "ass" is no part of "class". The right boundary is only known with the character
that follows, so a match is *completed* by that character, or by the end of the text (`pending`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_STATES = 20_000

# Scripts from here on (CJK) do not part words by spaces.
_UNSPACED = 0x2E80
# No character from here on has a case folding of its own (Unicode 16's last is U+1E921).
_LAST_FOLDED = 0x1E944


class TooManyStates(ValueError):
    """The phrases need more states than an engine should hold."""


class _Node(NamedTuple):
    """`prefix` of a folded phrase has been read, but for the last `rest` bytes of its last character."""

    prefix: str
    rest: bytes = b""


# Where a phrase may begin: anywhere, or only where no word is cut in two. No phrase holds these characters,
# as neither can be encoded.
_ANYWHERE, _AT_BOUNDARY = _Node("\ud800"), _Node("\ud801")
_BEGINNINGS = frozenset((_ANYWHERE, _AT_BOUNDARY))

# In place of bytes to come: the phrase is read, and the character after it has begun.
_WAITING = b"\xff"


@cache
def _unfolded() -> dict[str, tuple[str, ...]]:
    """Folded text to all characters that fold to it, for those that differ from it."""
    found: dict[str, list[str]] = {}
    for code in range(_LAST_FOLDED):
        folded = chr(code).casefold()
        if folded != chr(code):
            found.setdefault(folded, []).append(chr(code))
    return {folded: tuple(characters) for folded, characters in found.items()}


def _spaced(character: str) -> bool:
    return (character.isalnum() or character == "_") and ord(character) < _UNSPACED


# What came before, as far as it matters for a boundary: "word" and "other" after a whole character, the rest
# inside one.
_OTHER, _WORD = "other", "word"
_CONTINUED = {
    "word1": _WORD,
    "word2": "word1",
    "word3": "word2",
    "other1": _OTHER,
    "other2": "other1",
    "other3": "other2",
}


def _class_after(state: str, byte: int) -> str:
    """The class after `byte`.

    Punctuation beyond ASCII is told by its block: Latin-1, U+2000–207F (dashes, quotation marks),
    U+3000–303F and the plane of emoji; everything else beyond ASCII counts as a word's.
    """
    if byte < 0x80:
        return _WORD if chr(byte).isalnum() or byte == 0x5F else _OTHER
    if byte >= 0xC0:
        special = {0xC2: "C2", 0xE2: "E2", 0xE3: "E3", 0xF0: "F0"}.get(byte)
        if special:
            return special
        return "word1" if byte < 0xE0 else "word2" if byte < 0xF0 else "word3"
    if state == "C2":
        return _WORD if chr(byte).isalnum() else _OTHER
    if state == "E2":
        return "other1" if byte in (0x80, 0x81) else "word1"
    if state == "E3":
        return "other1" if byte == 0x80 else "word1"
    if state == "F0":
        return "other2" if byte == 0x9F else "word2"
    return _CONTINUED.get(state, _OTHER)


# Inside a character whose class the next byte will tell.
_UNDECIDED = frozenset({"C2", "E2", "E3", "F0"})
_CLASSES = {
    state: tuple(_class_after(state, byte) for byte in range(256))
    for state in (_OTHER, _WORD, *_CONTINUED, *_UNDECIDED)
}

# How a state is entered: no phrase was completed, one was by its last character, or by what followed it.
_PLAIN, _HIT, _CONFIRMED = range(3)

# (class of what came before, nodes of the phrases under way, how it was entered)
_State = tuple[str, frozenset[_Node], int]


class PhraseAutomaton:
    """A complete DFA over bytes.

    `table` [S, 256] gives the next state; `hit` [S] says that entering the state completed a phrase, and
    `confirmed` [S] that it did so only by the boundary after it; `pending` [S] that the text holds a phrase
    if it ends here. State 0 is the beginning of a text.
    Raises ValueError for an empty phrase and TooManyStates for more than `MAX_STATES`.
    """

    table: NDArray[np.int32]
    hit: NDArray[np.bool_]
    confirmed: NDArray[np.bool_]
    pending: NDArray[np.bool_]

    def __init__(
        self, phrases: Sequence[str], case_sensitive: bool = False, whole_words: bool = True
    ) -> None:
        if not phrases or not all(phrase.strip() for phrase in phrases):
            raise ValueError("a phrase must have at least one character that is no space")
        self._phrases = {phrase if case_sensitive else phrase.casefold() for phrase in phrases}
        self._case_sensitive = case_sensitive
        self._whole_words = whole_words
        # What may follow a prefix: pieces of one to three folded characters, as one character folds to three
        # at most.
        self._pieces: dict[str, set[str]] = {}
        for phrase in self._phrases:
            for at in range(len(phrase)):
                pieces = self._pieces.setdefault(phrase[:at], set())
                pieces.update(phrase[at : at + width] for width in (1, 2, 3) if at + width <= len(phrase))
        self._known: dict[_Node, dict[int, list[_Node]]] = {}
        self._build()

    def __len__(self) -> int:
        return len(self.table)

    def walk(self, state: int, data: bytes) -> tuple[int, bool]:
        """(the state after `data`, whether a phrase was completed on the way)."""
        found = False
        for byte in data:
            state = int(self.table[state, byte])
            found = found or bool(self.hit[state])
        return state, found

    def _build(self) -> None:
        # Bytes that lead no phrase on differ by their class alone: their states come first, 0 among them.
        order = [self._idle(name) for name in _CLASSES]
        numbers = {content: number for number, content in enumerate(order)}
        idle = {name: number for number, name in enumerate(_CLASSES)}
        templates = {
            name: np.array([idle[after] for after in row], dtype=np.int32) for name, row in _CLASSES.items()
        }
        rows = []
        for before, nodes, _ in order:  # grows while it is read
            row = templates[before].copy()
            for byte in self._expected(nodes):
                content = self._step(_CLASSES[before][byte], nodes, byte)
                row[byte] = numbers.setdefault(content, len(order))
                if row[byte] == len(order):
                    order.append(content)
            rows.append(row)
            if len(order) > MAX_STATES:
                raise TooManyStates(
                    f"the phrases need more than {MAX_STATES:,} states; give fewer or shorter"
                )
        self.table = np.stack(rows)
        entered = np.array([entry for _, _, entry in order])
        self.hit = entered != _PLAIN
        self.confirmed = entered == _CONFIRMED
        self.pending = np.array([any(map(self._is_end, nodes)) for _, nodes, _ in order])

    def _expected(self, nodes: frozenset[_Node]) -> Collection[int]:
        """The bytes after which more is to be known than their class."""
        if any(map(self._is_end, nodes)):
            return range(256)
        return {byte for node in nodes for byte in self._edges(node)}

    def _idle(self, after: str) -> _State:
        if after == _WORD:
            return after, frozenset((_ANYWHERE,)), _PLAIN
        return after, _BEGINNINGS if after == _OTHER else frozenset(), _PLAIN

    def _step(self, after: str, nodes: frozenset[_Node], byte: int) -> _State:
        _, begin, _ = self._idle(after)
        reached = set(begin)
        hit = confirmed = False
        for node in nodes:
            if self._is_end(node):
                # The right boundary: decided once the character that follows is a word's or not.
                confirmed = confirmed or after == _OTHER or after.startswith("other")
                if after in _UNDECIDED:
                    reached.add(_Node(node.prefix, _WAITING))
            for following in self._edges(node).get(byte, ()):
                if following.prefix in self._phrases and not following.rest:
                    hit = hit or not self._needs_boundary(following.prefix[-1])
                reached.add(following)
        return after, frozenset(reached), _HIT if hit else _CONFIRMED if confirmed else _PLAIN

    def _is_end(self, node: _Node) -> bool:
        """Whether a phrase has been read that only waits for what follows it."""
        if node.rest:
            return node.rest == _WAITING
        return node.prefix in self._phrases and self._needs_boundary(node.prefix[-1])

    def _needs_boundary(self, character: str) -> bool:
        return self._whole_words and _spaced(character)

    def _edges(self, node: _Node) -> dict[int, list[_Node]]:
        known = self._known.get(node)
        if known is None:
            known = self._known[node] = {}
            if node.rest and node.rest != _WAITING:
                known[node.rest[0]] = [_Node(node.prefix, node.rest[1:])]
            elif not node.rest:
                self._add_pieces(known, node)
        return known

    def _add_pieces(self, edges: dict[int, list[_Node]], node: _Node) -> None:
        begins = node in _BEGINNINGS
        prefix = "" if begins else node.prefix
        for piece in sorted(self._pieces.get(prefix, ())):
            if begins and self._needs_boundary(piece[0]) != (node == _AT_BOUNDARY):
                continue
            for character in self._characters(piece):
                first, *rest = character.encode()
                edges.setdefault(first, []).append(_Node(prefix + piece, bytes(rest)))

    def _characters(self, piece: str) -> Iterator[str]:
        """The single characters that read as `piece`."""
        if len(piece) == 1:
            yield piece
        if not self._case_sensitive:
            yield from _unfolded().get(piece, ())
