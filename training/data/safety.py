"""Which texts teach the safety classifier what, and which sources it never sees.

Every source says only what it knows: labels that it doesn't annotate are absent, and the loss leaves them
out. Whole sources are held out for evaluation (`HELD_OUT`), because rows of a seen source flatter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from training.data.entities import Marked, Spans, build_entities, read_rows, without_entities
from training.data.safety_attacks import attack
from training.data.safety_benign import abuse, harmless_requests, look_alike, mention, role_play
from training.data.safety_carriers import document
from training.data.safety_short import short_attack, short_request

TOXICITY_LABELS = ("toxicity", "obscene", "insult", "identity_attack", "threat")
LABELS = (*TOXICITY_LABELS, "injection", "harm")
IMPLIED = {"insult": "toxicity", "identity_attack": "toxicity", "threat": "toxicity"}
"""Kinds of toxicity, in Jigsaw's definitions: a text is never more likely of a kind than toxic at all."""
HELD_OUT = (
    "toxicity/surge_toxicity.jsonl.gz",
    "jailbreak/jbb_JBC_randomsearch.jsonl.gz",
    "jailbreak/bipia_email_context_train.jsonl.gz",
    "jailbreak/bipia_text_attack_train.jsonl.gz",
    "pii/wnut17_dev.jsonl.gz",
)
TRAINED_ON = (
    "toxicity/davidson.jsonl.gz",
    "toxicity/vicomtech_hate.jsonl.gz",
    "toxicity/diasafety_train.jsonl.gz",
    "toxicity/bias_madlibs_77k.jsonl.gz",
    "jailbreak/inthewild_jailbreaks.jsonl.gz",
    "jailbreak/benign_awesome_prompts_new.jsonl.gz",
    "jailbreak/benign_clinc_trainval.jsonl.gz",
    "harmful_prompts/red_instruct.jsonl.gz",
    "preference/hh_harmless_dev.jsonl.gz",
    "sft/llms_from_scratch_instr.jsonl.gz",
    "sft/gpteacher_roleplay.jsonl.gz",
    "sft/gpteacher_toolformer.jsonl.gz",
    "sft/gsm8k_train.jsonl.gz",
    "sft/self_dialogue.jsonl.gz",
    "sft/sgd_train.jsonl.gz",
    "sft/chatterbot_english.jsonl.gz",
    "pii/wnut17_train.jsonl.gz",
    "pii/presidio_generated_large.jsonl.gz",
)

_CLEAN = dict.fromkeys(LABELS, 0.0)
_INJECTION = {"injection": 1.0}
_NO_INJECTION = {"injection": 0.0}
# A weak label: what Jigsaw's raters called obscene is nearly always a text with one of these words.
_VULGAR = re.compile(
    r"\b(\w*fuck\w*|shit\w*|bullshit|bitch\w*|cunts?|dick\w*|pussy|pussies|ass|asshole\w*|bastards?|hoes?|whores?|sluts?|cocks?|tits|titties|damn|crap)\b",
    re.I,
)
# Sources that write names with capitals, so that a text without capitals holds none.
_CAPITALISED = frozenset(
    {
        "red_instruct",
        "attack_synthetic",
        "mention",
        "role_play",
        "vicomtech",
        "instructions",
        "document_clean",
    }
)
_CLUTTER = re.compile(r"&#\d+;|&amp;|&[lg]t;|\bRT @\w+:?|https?://\S+")


@dataclass(frozen=True, slots=True)
class Example:
    """A text, its known labels as probabilities, and its entity spans (None where they are not marked)."""

    text: str
    labels: Mapping[str, float]
    source: str
    spans: Spans | None = None


@dataclass(frozen=True, slots=True)
class SafetyData:
    """`train`; `dev`, rows of trained sources kept for calibration; `test`, by name, of what was "
    "held out."""

    train: list[Example]
    dev: list[Example]
    test: dict[str, list[Example]]


def tidy(text: str) -> str:
    """Tweets without their mark-up: entities, retweet prefixes and links."""
    return " ".join(_CLUTTER.sub(" ", text).replace("“", '"').split())


def chunks(text: str, characters: int, limit: int, rng: Random) -> list[str]:
    """The first `characters` of a long text and up to `limit - 1` further pieces, cut at blanks."""
    if len(text) <= characters:
        return [text]
    pieces = [text[:characters].rsplit(" ", 1)[0]]
    for _ in range(limit - 1):
        start = rng.randrange(max(1, len(text) - characters))
        pieces.append(text[start : start + characters].partition(" ")[2] or text[start : start + characters])
    return pieces


def _toxicity(root: Path, rng: Random) -> list[Example]:
    examples = []
    for row in read_rows(root / "davidson.jsonl.gz"):
        votes, text = int(row["count"]), tidy(row["tweet"])
        hate, offensive = int(row["hate_speech"]) / votes, int(row["offensive_language"]) / votes
        if row["class"] == "1" and rng.random() < 0.55:
            continue
        labels = _NO_INJECTION | {"toxicity": hate + offensive, "identity_attack": hate}
        labels["obscene"] = float(bool(_VULGAR.search(text)))
        examples.append(Example(text, labels, "davidson"))
    for row in read_rows(root / "vicomtech_hate.jsonl.gz"):
        hateful = row["label"] == "hate"
        if row["label"] in ("hate", "noHate") and (hateful or rng.random() < 0.6):
            labels = _NO_INJECTION | {"toxicity": float(hateful), "identity_attack": float(hateful)}
            examples.append(Example(row["text"], labels, "vicomtech"))
    for row in read_rows(root / "diasafety_train.jsonl.gz"):
        if row["category"] == "Offending User":
            labels = _NO_INJECTION | {"toxicity": 0.9 if row["label"] == "Unsafe" else 0.1}
            examples.append(Example(tidy(row["response"]), labels, "diasafety"))
        elif row["category"] == "Unauthorized Expertise" and rng.random() < 0.5:
            examples.append(Example(tidy(row["context"]), _CLEAN, "diasafety"))
        elif row["category"] == "Risk Ignorance" and row["label"] == "Safe" and rng.random() < 0.4:
            labels = _NO_INJECTION | {"toxicity": 0.0, "threat": 0.0}
            examples.append(Example(tidy(row["response"]), labels, "diasafety"))
    for row in rng.sample(list(read_rows(root / "bias_madlibs_77k.jsonl.gz")), 5000):
        bad = float(row["Label"] == "BAD")
        about_group = row["Template"] in ("name_adj", "verb_adj", "am_hate_adj")
        labels = _NO_INJECTION | {"toxicity": bad, ("identity_attack" if about_group else "insult"): bad}
        examples.append(Example(row["Text"], labels, "madlibs"))
    return examples


def _ordinary(root: Path, rng: Random, held_out_intents: frozenset[str]) -> tuple[list[Example], list[str]]:
    """Ordinary requests and talk, and the requests alone (for the synthetic part)."""
    texts: list[tuple[str, str]] = []
    clinc = [
        r
        for r in read_rows(root / "jailbreak/benign_clinc_trainval.jsonl.gz")
        if r["intent"] not in held_out_intents
    ]
    texts += [("clinc", r["text"]) for r in rng.sample(clinc, 4500)]
    requests = [r["text"] for r in rng.sample(clinc, 2000)]
    for row in read_rows(root / "sft/llms_from_scratch_instr.jsonl.gz"):
        texts.append(("instructions", f"{row['instruction']} {row['input']}".strip()))
        requests.append(row["instruction"])
    for row in read_rows(root / "sft/gpteacher_roleplay.jsonl.gz"):
        texts.append(("gpteacher", row["instruction"]))
        if rng.random() < 0.4:
            texts.append(("gpteacher", row["response"][:420]))
    for name, key, count in (("gpteacher_toolformer", "instruction", 1200), ("gsm8k_train", "question", 900)):
        texts += [
            (name, r[key][-500:]) for r in rng.sample(list(read_rows(root / f"sft/{name}.jsonl.gz")), count)
        ]
    for name, count in (("self_dialogue", 3500), ("sgd_train", 1500), ("chatterbot_english", 900)):
        for row in rng.sample(list(read_rows(root / f"sft/{name}.jsonl.gz")), count):
            first = rng.randrange(len(row["turns"]))
            text = "\n".join(row["turns"][first : first + rng.choice((1, 1, 1, 2, 4))])
            texts.append((name, text[:420]))
    return [Example(t, _CLEAN, s) for s, t in texts if t.strip()], requests


def _jailbreaks(root: Path, rng: Random) -> tuple[list[Example], list[Example]]:
    """In-the-wild jailbreaks and community role-play prompts; half of the latter are for the test."""
    train = [
        Example(piece, _INJECTION, "inthewild")
        for row in read_rows(root / "inthewild_jailbreaks.jsonl.gz")
        for piece in chunks(row["text"], 520, 2, rng)
    ]
    prompts = sorted({row["prompt"] for row in read_rows(root / "benign_awesome_prompts_new.jsonl.gz")})
    rng.shuffle(prompts)
    half = len(prompts) // 2
    train += [Example(piece, _CLEAN, "awesome") for p in prompts[half:] for piece in chunks(p, 520, 3, rng)]
    return train, [Example(p, _NO_INJECTION, "awesome") for p in prompts[:half]]


def _synthetic(
    rng: Random, harm: list[str], requests: list[str], prose: list[str], scale: float
) -> list[Example]:
    def count(n: int) -> range:
        return range(round(n * scale))

    attacks = sorted({attack(rng, harm) for _ in count(8500)})
    rng.shuffle(attacks)
    examples = [Example(a, _INJECTION, "attack_synthetic") for a in attacks]
    for _ in count(4500):
        examples.append(Example(document(rng, True, attacks, prose), _INJECTION, "document_injected"))
    for _ in count(4500):
        examples.append(Example(document(rng, False, (), prose), _CLEAN, "document_clean"))
    for make, n, name in (
        (role_play, 1500, "role_play"),
        (mention, 900, "mention"),
        (look_alike, 1500, "look_alike"),
    ):
        spans = () if make is look_alike else None  # no names in these; a dangerous word is not one
        examples += [Example(make(rng), _CLEAN, name, spans) for _ in count(n)]
    for _ in count(1200):
        examples.append(
            Example(
                f"{rng.choice(attacks)}\n{harmless_requests(rng, requests)}"
                if rng.random() < 0.5
                else f"{harmless_requests(rng, requests)} {rng.choice(attacks)}",
                _INJECTION,
                "attack_synthetic",
            )
        )
    for _ in count(1200):
        examples.append(Example(harmless_requests(rng, requests), _CLEAN, "request_synthetic"))
    for _ in count(5000):
        text, labels = abuse(rng)
        alone = text
        if rng.random() < 0.4:  # comments are seldom one sentence
            before, after = rng.choice(prose), rng.choice(prose)
            text = rng.choice((f"{before} {text}", f"{text} {after}", f"{before} {text} {after}"))
        examples.append(
            Example(text, _NO_INJECTION | labels, "abuse_synthetic", () if text is alone else None)
        )
    return examples


def _roughened(example: Example, rng: Random) -> Example:
    """A fifth of the texts in lower case, a few shouted or mistyped: for every class alike."""
    text, roll = example.text, rng.random()
    if roll < 0.2:
        text = text.lower()
    elif roll < 0.23:
        text = text.upper()
    elif roll < 0.28 and len(text) > 8:
        for _ in range(max(1, len(text) // 40)):
            i = rng.randrange(len(text) - 1)
            text = rng.choice(
                (
                    text[:i] + text[i + 1 :],
                    text[:i] + text[i + 1] + text[i] + text[i + 2 :],
                    text[:i] + text[i] + text[i:],
                )
            )
    # Edits move offsets: only the knowledge that there is no name survives them.
    return Example(text, example.labels, example.source, () if example.spans == () else None)


def _nameless(example: Example) -> Example:
    """Texts that hold no name, as far as capitals tell, say so to the entity head too."""
    if (
        example.source in _CAPITALISED
        and example.spans is None
        and next(without_entities([example.text]), None)
    ):
        return Example(example.text, example.labels, example.source, ())
    return example


def _short(rng: Random, requests: list[str], scale: float) -> list[Example]:
    """Short attacks and their harmless likes, alone and behind an ordinary request."""
    examples = []
    for _ in range(round(2000 * scale)):
        text, like = short_attack(rng), short_request(rng)
        if rng.random() < 0.25:
            before = rng.choice(requests)
            text, like = f"{before}. {text}", f"{before}. {like}"
        examples.append(Example(text, _INJECTION, "attack_synthetic"))
        examples.append(Example(like, _CLEAN, "mention"))
    return examples


def _first_human_turn(row: Mapping[str, str]) -> str:
    return row["chosen"].split("\n\nHuman:")[1].split("\n\nAssistant:")[0].strip()


def build(root: Path, seed: int = 0, scale: float = 1.0) -> SafetyData:
    """All examples, from the folder of the shared data; `scale` sizes the synthetic part.

    Raises FileNotFoundError where a source is missing.
    """
    rng = Random(seed)
    intents = sorted({r["intent"] for r in read_rows(root / "jailbreak/benign_clinc_trainval.jsonl.gz")})
    held_intents = frozenset(rng.sample(intents, 30))
    ordinary, requests = _ordinary(root, rng, held_intents)
    jailbreaks, role_play_test = _jailbreaks(root / "jailbreak", rng)
    harmful = [r["text"] for r in read_rows(root / "harmful_prompts/red_instruct.jsonl.gz")]
    rng.shuffle(harmful)
    harm_test, harm_train = harmful[:400], harmful[400:]
    prose = [
        s
        for e in ordinary
        if e.source in ("gpteacher", "self_dialogue")
        for s in re.split(r"(?<=[.!?])\s+", e.text)
        if 20 < len(s) < 160
    ]
    rows = [*_toxicity(root / "toxicity", rng), *ordinary, *jailbreaks]
    rows += [Example(t, {"harm": 1.0, "injection": 0.0}, "red_instruct") for t in harm_train]
    rows += [
        Example(_first_human_turn(r), _NO_INJECTION, "hh_prompts")
        for r in read_rows(root / "preference/hh_harmless_dev.jsonl.gz")
    ]
    rows += _synthetic(rng, harm_train, requests, prose, scale)
    named = build_entities(root, seed, round(7000 * scale), prose)
    rng.shuffle(rows)
    size = len(rows) // 20
    dev, train = rows[:size], [_roughened(e, rng) for e in rows[size:]]
    train = [_nameless(e) for e in train]
    train += _short(rng, requests, scale)
    train += _marked(named["train"], {})
    dev += _marked(named["dev"], {})
    rng.shuffle(train)
    test = {**_held_out(root, rng, held_intents), "role_play": role_play_test}
    test["harmful_requests"] = [Example(t, {"harm": 1.0}, "red_instruct") for t in harm_test]
    test |= {name: _marked(named[f"test_{name}"], {}) for name in ("presidio", "wnut17")}
    return SafetyData(train, dev, test)


def _marked(rows: Iterable[Marked], labels: Mapping[str, float]) -> list[Example]:
    return [Example(m.text, labels, m.source, m.spans) for m in rows]


def _held_out(root: Path, rng: Random, intents: frozenset[str]) -> dict[str, list[Example]]:
    surge = [
        Example(r["text"], {"toxicity": float(r["is_toxic"] == "Toxic")}, "surge")
        for r in read_rows(root / "toxicity/surge_toxicity.jsonl.gz")
    ]
    jbb = sorted(
        {(r["method"], r["prompt"]) for r in read_rows(root / "jailbreak/jbb_JBC_randomsearch.jsonl.gz")}
    )
    clinc = [
        r["text"]
        for r in read_rows(root / "jailbreak/benign_clinc_trainval.jsonl.gz")
        if r["intent"] in intents
    ]
    contexts = [r["context"] for r in read_rows(root / "jailbreak/bipia_email_context_train.jsonl.gz")]
    # Only those that steer the assistant's answer; a bare question in a mail is no attack by its words.
    steering = [
        a
        for r in read_rows(root / "jailbreak/bipia_text_attack_train.jsonl.gz")
        if re.search(r"\b(your|the) (answer|response|reply|message)", a := r["attack"])
    ]
    return {
        "comments": surge,
        "jailbreaks": [Example(p, _INJECTION, f"jbb_{m}") for m, p in jbb],
        "requests": [Example(t, _NO_INJECTION, "clinc") for t in rng.sample(clinc, 2000)],
        "mails_injected": [
            Example(_insert(rng, c, rng.choice(steering)), _INJECTION, "bipia")
            for c in contexts
            for _ in range(4)
        ],
        "mails": [Example(c, _NO_INJECTION, "bipia") for c in contexts],
    }


def _insert(rng: Random, context: str, attack_text: str) -> str:
    lines = context.split("\n")
    lines.insert(rng.randint(0, len(lines)), attack_text)
    return "\n".join(lines)
