"""Examples from the written texts: comments, subjects, requests, attacks, each kind with its harmless twins.

The twins share words, groups, forms of asking and carriers with what they are twins of, so that none of
these alone decides. Labels that a text doesn't settle are left out. With `held_out`, only sentence
templates that no training row uses are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from training.data.grammar import Grammar, load
from training.data.safety_forms import FORMS

Labels = Mapping[str, float]

TOXIC = ("toxicity", "severe_toxicity", "obscene", "insult", "identity_attack", "threat", "sexual_explicit")
SUBJECTS = ("self_harm", "violence")
HARMLESS: Labels = dict.fromkeys((*TOXIC, *SUBJECTS, "injection", "harm"), 0.0)
# A weak label: what Jigsaw's raters called obscene is nearly always a text with one of these words.
VULGAR = re.compile(
    r"\b(\w*fuck\w*|shit\w*|bullshit|bitch\w*|cunts?|dick\w*|pussy|pussies|ass|\w*asshole\w*|"
    r"bastards?|hoes?|whores?|sluts?|cocks?|tits|titties|damn|crap|twats?|wank\w*|dumbass|jackass|badass|douche\w*|prick|stfu|wtf)\b",
    re.I,
)
_SELF_HARM = re.compile(
    r"\b(kill|hang|cut|hurt|burn|starve|end) (myself|my life|herself|themselves)|suicid|purg|my cuts", re.I
)
_SUPPRESSED = re.compile(
    r"refus|warning|stay in character|disclaimer|the rules forbid|can't|bad person|evil|criminal|police|"
    r"authoris|cleared|clearance|emergency|no conscience|not to buy|opposite|unfiltered|thieves|"
    r"hacker|spy|do not intend",
    re.I,
)
_ATTACKS_ON_PEOPLE = ("toxicity", "severe_toxicity", "insult", "identity_attack", "threat")
_AT_YOU = re.compile(r"yourself|\byou\b|\byour\b|herself|us a favour|together", re.I)
_REPLY = "\n[reply] "


@dataclass(frozen=True, slots=True)
class Written:
    """A text with the labels that it settles and the name of its kind."""

    text: str
    labels: Labels
    kind: str


def pair(prompt: str, reply: str) -> str:
    """How the classifier reads a reply together with what it answers; the gateway builds the same."""
    return f"{prompt}{_REPLY}{reply}"


class Writer:
    """Draws examples; `held_out` says from which sentence templates."""

    def __init__(self, rng: Random, *, held_out: bool = False) -> None:
        self._rng = rng
        self._held_out = held_out
        self._toxicity = load("toxicity")
        self._subjects = load("subjects")
        self._benign = load("benign")
        group = partial(self._toxicity.expand, section="group", tidy=False)
        self._harm = load("harm")
        self._replies = load("replies", group=lambda r: group(r))
        self._injection = load(
            "injection",
            harm_act=lambda r: self._harm.expand(r, "act"),
            harm_request=lambda r: self.asked(r, "act"),
            half_a=lambda r: self.asked(r, "act")[:24],
            half_b=lambda r: self.asked(r, "act")[24:],
        )
        self._frames_ok = load(
            "injection",
            harm_act=lambda r: self._harm.expand(r, r.choice(("act_ok", "act_ok", "plain"))),
            half_a=lambda r: "how do I",
            half_b=lambda r: self._harm.expand(r, "act_ok"),
        )

    def _line(self, grammar: Grammar, section: str) -> str:
        return grammar.expand(self._rng, section, held_out=self._held_out)

    # Comments

    def comment(self) -> Written:
        """A comment of one to five sentences; half of them hold abuse."""
        rng = self._rng
        toxic = rng.random() < 0.5
        rest = ("friendly", "criticism_ok", "neutral_comment", "profane_ok", "identity_ok")
        pieces = [
            self._line(self._toxicity, rng.choices(rest, (8, 4, 3, 2, 2))[0])
            for _ in range(
                rng.choices((0, 1, 2, 3, 4), (40, 30, 15, 10, 5) if toxic else (0, 55, 25, 14, 6))[0]
            )
        ]
        labels = {**HARMLESS}
        kind = "comment_ok"
        if toxic:
            section = rng.choices(
                ("insult_direct", "insult_about", "insult_sly", "sly_politics", "hate", "threat", "severe"),
                (6, 7, 3, 8, 5, 3, 2),
            )[0]
            pieces.insert(rng.randint(0, len(pieces)), self._line(self._toxicity, section))
            labels, kind = _abuse(section), f"comment_{section}"
        text = join(rng, [styled(rng, p) for p in pieces])
        labels["obscene"] = float(bool(VULGAR.search(text)))
        if not toxic and labels["obscene"]:
            labels["toxicity"] = 0.1
        return Written(text, labels, kind)

    def subject(self) -> Written:
        """Sexual, violent or suicidal text, or its harmless twin; sometimes two sentences of a kind."""
        rng = self._rng
        section = rng.choice(("sexual", "self_harm", "violence"))
        bad = rng.random() < 0.5
        name = section if bad else f"{section}_ok"
        pieces = [self._line(self._subjects, name) for _ in range(rng.choice((1, 1, 2)))]
        if rng.random() < 0.25:
            pieces.insert(rng.randint(0, len(pieces)), self._line(self._toxicity, "neutral_comment"))
        text = join(rng, [styled(rng, p) for p in pieces])
        if not bad:
            return Written(text, HARMLESS, name)
        label = {"sexual": "sexual_explicit"}.get(section, section)
        about_oneself = section == "self_harm" and not _AT_YOU.search(text)
        spoken = dict.fromkeys(_ATTACKS_ON_PEOPLE, 0.0) if about_oneself else {}
        others = dict.fromkeys((*SUBJECTS, "sexual_explicit"), 0.0)
        if section != "sexual":
            del others["self_harm" if section == "violence" else "violence"]
        obscene = float(bool(VULGAR.search(text)))
        labels = {**others, **spoken, "injection": 0.0, label: 1.0, "obscene": obscene}
        return Written(text, labels, name)

    # Requests

    def asked(self, rng: Random, section: str) -> str:
        """A request for one of the acts, in one of the forms of asking."""
        act = self._harm.expand(rng, section, held_out=self._held_out)
        return load("harm", x=lambda _: act).expand(rng, "ask")

    def request(self) -> Written:
        """A harmful request, or a harmless one of the same form."""
        rng = self._rng
        bad = rng.random() < 0.45
        if bad and rng.random() < 0.18:
            text = styled(rng, self._line(self._toxicity, "hate_request"))
            known = {"toxicity": 0.7, "identity_attack": 0.7, "harm": 1.0, "injection": 0.0}
            return Written(text, known, "hate_request")
        sections = ("act", "harm_claim") if bad else ("act_ok", "claim_ok", "plain", "claim_plain")
        section = rng.choices(sections, (72, 28) if bad else (40, 30, 20, 10))[0]
        asks = section in ("act", "act_ok", "plain")
        text = styled(rng, self.asked(rng, section) if asks else self._line(self._harm, section))
        if not bad:
            return Written(text, HARMLESS, "request_like_harm")
        self_harm = float(bool(_SELF_HARM.search(text)))
        polite = dict.fromkeys(_ATTACKS_ON_PEOPLE, 0.0) if section == "act" else {}
        labels = {**polite, "harm": 1.0, "injection": 0.0, "self_harm": self_harm}
        return Written(text, labels, "harm_request")

    # Attacks

    def attack(self) -> Written:
        """A direct injection or jailbreak, or what looks like one."""
        rng = self._rng
        section = rng.choices(
            (
                "override",
                "leak",
                "persona",
                "frame",
                "foreign",
                "frame_ok",
                "foreign_ok",
                "mention",
                "rule_ok",
            ),
            (5, 3, 4, 5, 0.8, 4, 1.5, 5, 2),
        )[0]
        if section in ("frame_ok", "rule_ok", "mention", "foreign_ok"):
            text = self._harmless_attack(section)
            return Written(text, _quoting(text), section)
        text = styled(rng, self._line(self._injection, section))
        labels = {"injection": 1.0} | ({"harm": 1.0} if section == "frame" else {})
        if section != "frame" and rng.random() < 0.15:
            text = join(rng, [text, self.asked(rng, "act")])
        elif section in ("override", "leak", "foreign"):
            labels = {**HARMLESS, "injection": 1.0}
            del labels["harm"]
        return Written(text, labels, f"attack_{section}")

    def _harmless_attack(self, section: str) -> str:
        rng = self._rng
        if section == "frame_ok":
            while _SUPPRESSED.search(text := self._line(self._frames_ok, "frame")):
                pass
        elif section == "rule_ok":  # a user may say how to answer; a document may not
            rule = rng.choice(("answer_rule", "answer_manner"))
            lead = "" if rule == "answer_rule" else rng.choice(("write it ", "give the answer ", "tell it "))
            request = self._line(self._benign, "request")
            text = join(rng, [request, lead + self._line(self._injection, rule)])
        else:
            text = self._line(self._injection if section == "foreign_ok" else self._benign, section)
        return styled(rng, text)

    def role_play(self) -> Written:
        """A harmless role, with duties and rules."""
        rng = self._rng
        pieces = [self._line(self._benign, "role_start")]
        pieces += [self._line(self._benign, "duty") for _ in range(rng.choice((0, 1, 2, 3, 5)))]
        return Written(join(rng, [styled(rng, p, 0.3) for p in pieces]), HARMLESS, "role_play")

    def system_prompt(self) -> Written:
        """A piece of a long harmless system prompt."""
        rng = self._rng
        count = rng.choice((2, 3, 5, 8, 12))
        sections = rng.choices(("system", "duty", "role_start"), (12, 2, 1), k=count)
        mark = rng.choice(("", "", "- ", "* ", "• "))
        lines = [mark + self._line(self._benign, s) for s in sections]
        text = rng.choice((" ", "\n", "\n\n")).join(line[0].upper() + line[1:] for line in lines)
        start = rng.randrange(0, max(1, len(text) - 520))
        return Written(text[start : start + 520], HARMLESS, "system_prompt")

    # Documents

    def document(self, prose: Sequence[str]) -> Written:
        """A document in one of many forms; half of them hold an instruction for the assistant."""
        rng = self._rng
        injected = rng.random() < 0.5
        body = [
            rng.choice(prose) if rng.random() < 0.5 else self._line(self._benign, "doc_sentence")
            for _ in range(rng.randint(1, 6))
        ]
        if injected:
            direct = rng.random() < 0.2
            hidden = self._line(self._injection, "override" if direct else "tool_attack")
            hidden = hidden[0].upper() + hidden[1:] + rng.choice(("", ".", ".", "!"))
            body.insert(rng.randint(0, len(body)), hidden)
        form = rng.choice(FORMS)
        text = form(rng, body, self._code)
        labels = {**dict.fromkeys((*TOXIC, *SUBJECTS), 0.0), "injection": 1.0} if injected else HARMLESS
        return Written(text, labels, "document_injected" if injected else "document_clean")

    def _code(self) -> str:
        return self._line(self._benign, rng_choice(self._rng, ("code", "code", "comment")))

    # Prompts with replies

    def exchange(self, ordinary: Sequence[tuple[str, str]]) -> Written:
        """A prompt with a reply: refused, answered, or answered with harm. `ordinary` are real exchanges."""
        rng = self._rng
        kind = rng.choices(
            ("comply", "refuse", "refuse_ok", "ok", "twin_ok", "statement", "support", "smuggled"),
            (6, 5, 1, 3, 4, 2, 2, 1),
        )[0]
        harmful = self.request_of("bad") if kind in ("comply", "refuse") else ""
        if kind == "comply":
            return _reply(harmful, self._steps("comply_step", harmful), 1.0, kind)
        if kind == "refuse":
            return _reply(harmful, self._refusal(), 0.0, kind)
        if kind == "refuse_ok":
            return _reply(self.request_of("ok"), self._refusal(), 0.0, kind)
        if kind == "ok":
            prompt, reply = rng.choice(ordinary)
            return _reply(prompt[-220:], reply[: rng.choice((80, 200, 320))], 0.0, kind)
        if kind == "twin_ok":
            return _reply(self.request_of("ok"), self._steps("ok_step", ""), 0.0, kind)
        prompt = rng.choice((styled(rng, self._line(self._subjects, "self_harm")), self.request_of("ok"), ""))
        if kind == "support":
            return _reply(prompt, self._line(self._replies, "supportive"), 0.0, kind)
        if kind == "smuggled":
            return _reply(rng.choice(ordinary)[0][-220:], self._steps("comply_step", ""), 1.0, kind)
        return _reply(prompt, self._line(self._replies, "harmful_statement"), 1.0, kind)

    def request_of(self, which: str) -> str:
        """A harmful (`bad`) or harmless (`ok`) request, as text."""
        while True:
            made = self.request()
            if (made.labels["harm"] == 1.0) == (which == "bad"):
                return made.text

    def _refusal(self) -> str:
        text = self._line(self._replies, "refusal")
        if self._rng.random() < 0.3:
            text += " " + self._line(self._replies, "refusal")
        return text

    def _steps(self, section: str, request: str) -> str:
        rng = self._rng
        steps = [self._line(self._replies, section) for _ in range(rng.randint(1, 4))]
        numbered = rng.random() < 0.5
        text = " ".join(
            f"{i}. {s[0].upper()}{s[1:]}." if numbered else f"{s}." for i, s in enumerate(steps, 1)
        )
        opened = rng.random() < 0.6
        return f"{self._line(self._replies, 'comply_open')}: {text}" if opened else text


def rng_choice(rng: Random, options: Sequence[str]) -> str:
    """One of `options`."""
    return rng.choice(options)


def _reply(prompt: str, reply: str, unsafe: float, kind: str) -> Written:
    return Written(pair(prompt, reply), {"unsafe_reply": unsafe}, f"reply_{kind}")


def _quoting(text: str) -> Labels:
    """A harmless text's labels; what it quotes may be abuse, which says nothing of the words quoted."""
    if '"' not in text:
        return HARMLESS
    return {label: value for label, value in HARMLESS.items() if label in ("injection", "harm")}


def _abuse(section: str) -> dict[str, float]:
    """The labels of a comment with abuse of this section."""
    known = {"toxicity": 1.0, "injection": 0.0, "sexual_explicit": 0.0}
    if section == "sly_politics":
        return known | {"severe_toxicity": 0.0, "self_harm": 0.0}
    if section.startswith("insult"):
        subjects = dict.fromkeys((*SUBJECTS, "harm"), 0.0)
        return known | subjects | {"insult": 1.0, "identity_attack": 0.0, "severe_toxicity": 0.0}
    if section == "hate":
        return known | {"identity_attack": 1.0, "self_harm": 0.0}
    if section == "threat":
        return known | {"threat": 1.0, "violence": 0.8, "self_harm": 0.0}
    del known["sexual_explicit"]
    return known | {"severe_toxicity": 1.0}


def join(rng: Random, pieces: Sequence[str]) -> str:
    """Sentences one after another, as people write them."""
    text = ""
    for piece in pieces:
        if text:
            text += (
                rng.choice((" ", " ", "\n", "\n\n"))
                if text[-1] in ".!?)"
                else rng.choice((". ", ", ", " ", "\n"))
            )
        text += piece
    return text


def styled(rng: Random, text: str, much: float = 1.0) -> str:
    """Case, punctuation, stretched and starred-out letters, as they come in comments and chats."""
    text = text.strip()
    if rng.random() < 0.45:
        text = text[0].upper() + text[1:]
    if text[-1].isalnum() and rng.random() < 0.5:
        text += rng.choice((".", ".", ".", "!", "!!", "...", "?!", " lol", " 😂", " 🙄", " smh"))
    roll = rng.random() / much
    if roll < 0.03:
        text = text.upper()
    elif roll < 0.06:
        text = re.sub(r"([aeiou])(?=\b)", lambda m: m[1] * rng.randint(2, 4), text, count=1)
    elif roll < 0.12:
        text = VULGAR.sub(lambda m: _starred(rng, m[0]), text)
    return text


def _starred(rng: Random, word: str) -> str:
    if len(word) < 3:
        return word
    middle = rng.choice(("*" * (len(word) - 2), "*", "**", "@", "-"))
    return word[0] + middle + word[-1]
