"""Bring crowd-written dialogue into the spelling that a chat model should answer in.

Sentence case, the pronoun I, apostrophes in contractions, one space after and none before punctuation,
a mark at the end of a turn. Turns that stay unfit (shouted, garbled, far too long, crude, about the
crowd-work task itself) end the conversation before them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from training.data.conversation import Conversation, Message

MAX_WORDS = 70

_CONTRACTIONS = {
    "im": "I'm", "ive": "I've", "dont": "don't", "doesnt": "doesn't", "didnt": "didn't", "cant": "can't",
    "couldnt": "couldn't", "wouldnt": "wouldn't", "shouldnt": "shouldn't", "isnt": "isn't", "arent": "aren't",
    "wasnt": "wasn't", "werent": "weren't", "hasnt": "hasn't", "havent": "haven't", "hadnt": "hadn't",
    "youre": "you're", "youve": "you've", "theyre": "they're", "theyve": "they've", "thats": "that's",
    "whats": "what's", "hes": "he's", "shes": "she's", "theres": "there's", "lets": "let's", "id": "I'd",
    "wont": "won't", "i": "I", "i'm": "I'm", "i've": "I've", "i'd": "I'd", "i'll": "I'll", "u": "you",
    "ur": "your", "alot": "a lot", "thier": "their", "definately": "definitely", "alright": "alright",
    "gonna": "going to", "wanna": "want to", "cuz": "because", "bc": "because", "tho": "though",
    "ya": "yes", "yea": "yeah", "favourite": "favorite",
}  # fmt: skip
_WORD = re.compile(r"(?<![\w'])(?:" + "|".join(map(re.escape, _CONTRACTIONS)) + r")(?![\w'])", re.IGNORECASE)
_QUESTION = re.compile(
    r"(?:(?:so|and|but|well|oh|ok|okay|yeah|hey|hi|hello),? )?"
    r"(?:what|who|where|when|why|which|how|do|does|did|is|are|was|were|can|could|would|will|have|has|"
    r"should|what's|who's|aren't|isn't|don't|didn't|doesn't|haven't|wasn't|wouldn't|any)\b",
    re.IGNORECASE,
)
_UNFIT = re.compile(
    r"\b(?:fuck\w*|shit\w*|bitch\w*|asshole\w*|cunt\w*|dick|cock|nigg\w*|fag\w*|whore\w*|slut\w*|"
    r"porn\w*|rape[ds]?|penis|vagina|boobs?|tits?|sexy|sex|retard\w*|bastard\w*|crap\w*|crotch|"
    r"ass|damn\w*|pussy|suicide|kill yourself|mturk|turker\w*|survey)\b|https?:|www\.|<\|",
    re.IGNORECASE,
)
_LOWER_CASE = re.compile(r"(?<![\w'])[a-z][a-z']+(?![\w'])")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "–": "-", "—": "-", "`": "'"})


def clean_text(text: str) -> str:
    """The turn in tidy spelling; the words and their order stay."""
    text = " ".join(text.translate(_QUOTES).split())
    text = re.sub(r"\s+([,.!?;:])", r"\1", text)
    text = re.sub(r"([!?.,])\1{3,}", r"\1", text)
    text = re.sub(r"([!?])\.(?!\.)", r"\1", text)
    text = re.sub(r"([a-z]{2})([.!?,])([A-Za-z]{2})", r"\1\2 \3", text)
    if text.isupper() and len(text) > 4:
        text = text.lower()
    text = _WORD.sub(lambda match: _CONTRACTIONS[match.group().lower()], text)
    text = re.sub(r"(^|[.!?] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)
    if text and (text[-1].isalnum() or text[-1] in "'\")"):
        last_sentence = re.split(r"(?<=[.!?]) ", text)[-1]
        text += "?" if _QUESTION.match(last_sentence) else "."
    return text


def is_unfit(text: str) -> bool:
    """True for a turn that a chat model should not learn to write."""
    words = text.split()
    letters = sum(c.isalpha() for c in text)
    plain = sum(c.isascii() for c in text)
    return (
        not words
        or len(words) > MAX_WORDS
        or plain < 0.97 * len(text)
        or letters < 0.4 * len(text)
        or (sum(c.isupper() for c in text) > 0.5 * letters and letters > 8)
        or _UNFIT.search(text) is not None
    )


def clean_conversation(conversation: Conversation, min_turns: int = 2) -> Conversation | None:
    """Tidy every turn; cut before the first unfit one. None where fewer than `min_turns` remain.

    A turn that repeats an earlier one ends the conversation too: crowd workers paste, and a small model
    learns loops from it.
    """
    kept: list[Message] = []
    seen: set[str] = set()
    for message in conversation.messages:
        text = clean_text(message.content)
        if is_unfit(text) or (len(text.split()) > 4 and text.lower() in seen):
            break
        seen.add(text.lower())
        kept.append(replace(message, content=text))
    while kept and kept[-1].role != "assistant":
        kept.pop()
    return replace(conversation, messages=tuple(kept)) if len(kept) >= min_turns else None


def rare_words(conversations: Iterable[Conversation], fewer_than: int = 5) -> frozenset[str]:
    """Lower-case words that occur fewer than `fewer_than` times: mostly misspellings."""
    counts = Counter(word for c in conversations for word in _lower_case_words(c))
    return frozenset(word for word, count in counts.items() if count < fewer_than)


def rare_share(conversation: Conversation, rare: frozenset[str]) -> float:
    """The share of the conversation's lower-case words that are rare."""
    words = _lower_case_words(conversation)
    return sum(word in rare for word in words) / max(len(words), 1)


def _lower_case_words(conversation: Conversation) -> list[str]:
    return [word for message in conversation.messages for word in _LOWER_CASE.findall(message.content)]
