"""Word lists as one expression: found as whole words, whatever their case, in time that doesn't grow with
the list."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import regex

_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")

# For a word character \b says the same as the look-around, and faster.
_EDGES = (r"\b", r"(?!\w)")

Trie = dict[str, "Trie"]


def word_expression(words: Iterable[str]) -> str:
    """An expression for any of `words`; white space in a phrase stands for any white space.

    A word's edge is where word characters don't go on; scripts that don't space their words have no edges.
    Raises `ValueError` for a word without visible characters.
    """
    trie: Trie = {}
    for word in words:
        units = _units(word.lower())
        if not units:
            raise ValueError("a word must have visible characters")
        node = trie
        for unit in units:
            node = node.setdefault(unit, {})
        node[""] = {}
    return f"(?i){_alternation(trie)}"


def _units(word: str) -> list[str]:
    """What a word is made of, each unit an expression for one character or gap; edges included."""
    units: list[str] = []
    pieces = word.split()
    for index, piece in enumerate(pieces):
        if index:
            units.append(r"\s{1,8}")
        units += [regex.escape(char, special_only=True) for char in piece]
    if not units:
        return []
    first, last = pieces[0][0], pieces[-1][-1]
    if _has_edge(first):
        units.insert(0, r"\b" if regex.match(r"\w", first) else r"(?<!\w)")
    if _has_edge(last):
        units.append(r"\b" if regex.match(r"\w", last) else r"(?!\w)")
    return units


def _has_edge(char: str) -> bool:
    return not unicodedata.name(char, "").startswith(_UNSPACED)


def _alternation(trie: Trie) -> str:
    """The longest words first, so that of two words of which one begins the other the longer is found."""
    units = sorted((unit for unit in trie if unit), key=lambda unit: unit in _EDGES)
    branches = [f"{unit}{_alternation(trie[unit])}" for unit in units]
    if not branches:
        return ""
    body = branches[0] if len(branches) == 1 and "" not in trie else f"(?:{'|'.join(branches)})"
    return f"{body}?" if "" in trie else body
