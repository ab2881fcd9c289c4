"""Readers of the shared data: what each source says, and nothing that it doesn't.

Labels that a source doesn't annotate are absent, and the loss leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from random import Random

from training.data.entities import read_rows
from training.data.safety_example import CLEAN, INJECTION, NO_INJECTION, Example
from training.data.safety_written import VULGAR, pair

LONGEST_PROMPT = 3_000
"""Characters of a held-out prompt that are read; a few have a hundred thousand."""

_CLUTTER = re.compile(r"&#\d+;|&amp;|&[lg]t;|\bRT @\w+:?|https?://\S+")
# What makes a piece of a long jailbreak an attack by itself; the rest of one may be an ordinary role.
_JAILBREAK = re.compile(
    r"ignor|restrict|polic|guideline|\bDAN\b|filter|ethic|moral|illegal|openai|refus|jailb|censor|unlimited|"
    r"no limits|break character|do anything|harmful|apolog|content warning|disclaim|cannot say no|never say|"
    r"without (?:any )?(?:rules|warn|limit)|must (?:always )?comply|dangerous|nsfw|profan|swear|opposite|"
    r"previous|instructions|safety",
    re.I,
)


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


def toxicity(root: Path, rng: Random) -> list[Example]:
    """Tweets, forum sentences and dialogue, labelled for hate and offence; templates about groups."""
    examples = []
    for row in read_rows(root / "davidson.jsonl.gz"):
        votes, text = int(row["count"]), tidy(row["tweet"])
        hate, offensive = int(row["hate_speech"]) / votes, int(row["offensive_language"]) / votes
        if row["class"] == "1" and rng.random() < 0.4:
            continue
        labels = {**NO_INJECTION, "toxicity": hate + offensive, "identity_attack": hate}
        labels["obscene"] = float(bool(VULGAR.search(text)))
        examples.append(Example(text, labels, "davidson"))
    for row in read_rows(root / "vicomtech_hate.jsonl.gz"):
        hateful = row["label"] == "hate"
        if row["label"] in ("hate", "noHate") and (hateful or rng.random() < 0.6):
            labels = {**NO_INJECTION, "toxicity": float(hateful), "identity_attack": float(hateful)}
            examples.append(Example(row["text"], labels, "vicomtech"))
    for row in rng.sample(list(read_rows(root / "bias_madlibs_77k.jsonl.gz")), 5000):
        bad = float(row["Label"] == "BAD")
        about_group = row["Template"] in ("name_adj", "verb_adj", "am_hate_adj")
        labels = {**NO_INJECTION, "toxicity": bad, ("identity_attack" if about_group else "insult"): bad}
        examples.append(Example(row["Text"], labels, "madlibs"))
    return examples + dialogue(root / "diasafety_train.jsonl.gz", rng)


def dialogue(path: Path, rng: Random) -> list[Example]:
    """DiaSafety (Sun et al. 2022): replies that are insulting, and pairs whose reply is unsafe in context."""
    examples = []
    for row in read_rows(path):
        unsafe, category = row["label"] == "Unsafe", row["category"]
        context, response = tidy(row["context"]), tidy(row["response"])
        if category == "Offending User":
            labels = {**NO_INJECTION, "toxicity": 0.9 if unsafe else 0.1}
            examples.append(Example(response, labels, "diasafety"))
        elif category == "Unauthorized Expertise" and rng.random() < 0.5:
            examples.append(Example(context, CLEAN, "diasafety"))
        elif category == "Risk Ignorance" and not unsafe and rng.random() < 0.4:
            examples.append(Example(response, {**NO_INJECTION, "toxicity": 0.0, "threat": 0.0}, "diasafety"))
        both = pair(context[-220:], response[:320])
        examples.append(Example(both, {"unsafe_reply": 0.9 if unsafe else 0.1}, "diasafety_pair"))
    return examples


def ordinary(root: Path, rng: Random, held_out_intents: frozenset[str]) -> tuple[list[Example], list[str]]:
    """Ordinary requests and talk, and the requests alone (to put attacks beside)."""
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
    for name, key, count in (
        ("gpteacher_toolformer", "instruction", 2000),
        ("gsm8k_train", "question", 1200),
    ):
        texts += [
            (name, r[key][-500:]) for r in rng.sample(list(read_rows(root / f"sft/{name}.jsonl.gz")), count)
        ]
    for name, count in (("self_dialogue", 4500), ("sgd_train", 2500), ("chatterbot_english", 1200)):
        for row in rng.sample(list(read_rows(root / f"sft/{name}.jsonl.gz")), count):
            first = rng.randrange(len(row["turns"]))
            text = "\n".join(row["turns"][first : first + rng.choice((1, 1, 1, 2, 4))])
            texts.append((name, text[:420]))
    return [Example(t, CLEAN, s) for s, t in texts if t.strip()], requests


def exchanges(root: Path, rng: Random) -> list[tuple[str, str]]:
    """Real harmless prompts with their replies."""
    pairs = [
        (f"{r['instruction']} {r['input']}".strip(), r["output"])
        for r in read_rows(root / "sft/llms_from_scratch_instr.jsonl.gz")
    ]
    pairs += [(r["instruction"], r["response"]) for r in read_rows(root / "sft/gpteacher_roleplay.jsonl.gz")]
    for row in rng.sample(list(read_rows(root / "sft/sgd_train.jsonl.gz")), 2000):
        first = 2 * rng.randrange(len(row["turns"]) // 2)
        pairs.append((row["turns"][first], row["turns"][first + 1]))
    return pairs


def jailbreaks(root: Path, rng: Random) -> tuple[list[Example], list[Example]]:
    """In-the-wild jailbreaks and community role-play prompts; half of the latter are for the test.

    A piece of a jailbreak that lifts or overrides nothing is left out: it could be anyone's role.
    """
    train = [
        Example(piece, INJECTION, "inthewild")
        for row in read_rows(root / "inthewild_jailbreaks.jsonl.gz")
        for piece in chunks(row["text"], rng.choice((300, 420, 520)), 3, rng)
        if len(_JAILBREAK.findall(piece)) >= 2
    ]
    prompts = sorted({row["prompt"] for row in read_rows(root / "benign_awesome_prompts_new.jsonl.gz")})
    rng.shuffle(prompts)
    half = len(prompts) // 2
    train += [
        Example(piece, CLEAN, "awesome")
        for p in prompts[half:]
        for piece in chunks(p, rng.choice((200, 420, 520)), 2 + min(30, len(p) // 400), rng)
    ]
    return train, [Example(p[:LONGEST_PROMPT], NO_INJECTION, "awesome") for p in prompts[:half]]


def first_human_turn(row: Mapping[str, str]) -> str:
    """What the person asked, of a row of Anthropic's preference data."""
    return row["chosen"].split("\n\nHuman:")[1].split("\n\nAssistant:")[0].strip()
