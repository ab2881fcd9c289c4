"""Texts from which an early exit learns what its encoder says: pieces as guards read them.

No label is used: the encoder's own scores are the targets. Whole sources are kept for choosing thresholds
(`VALIDATION`); what docs/SAFETY.md measures on (`training.data.safety.HELD_OUT`) is used for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from training.data.entities import read_rows, wnut
from training.data.safety import TRAINED_ON as ENCODER_TRAINED_ON
from training.data.safety import build
from training.data.safety_example import Example
from training.data.safety_sources import chunks, first_human_turn
from training.data.safety_written import pair

VALIDATION = (
    "toxicity/vicomtech_hate.jsonl.gz",
    "toxicity/rtp_prompts.jsonl.gz",
    "jailbreak/inthewild_jailbreaks.jsonl.gz",
    "jailbreak/openai_guardrails_demo.jsonl.gz",
    "preference/llms_from_scratch_dpo.jsonl.gz",
    "pii/wnut17_train.jsonl.gz",
)
"""Sources that only thresholds are chosen on."""
TRAINED_ON = tuple(dict.fromkeys((*ENCODER_TRAINED_ON, *VALIDATION)))
"""Every file that an exit's weights or limits come from."""
_KEPT_BACK = frozenset("vicomtech inthewild wnut17".split())
"""Their names in `training.data.safety`, whose rows of them are left out."""

CHANGED = "/changed"
"""What is added to the source's name of a text that was changed."""
MOST_OF_A_SOURCE = 5_000
SHORTEST, LONGEST = 60, 520
"""Of a piece of prose, in characters."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text and where it is from."""

    text: str
    source: str


def training_texts(root: Path, examples: Sequence[Example], rng: Random) -> list[Text]:
    """Rows of the safety data, pieces of ordinary replies, and both of them changed and put together."""
    by_source: dict[str, list[str]] = {}
    for example in examples:
        if example.source not in _KEPT_BACK:
            by_source.setdefault(example.source, []).append(example.text)
    plain = [
        Text(text, source)
        for source, texts in sorted(by_source.items())
        for text in rng.sample(texts, min(MOST_OF_A_SOURCE, len(texts)))
    ]
    prose = [Text(piece, source) for source, text in replies(root, rng) for piece in pieces(text, rng)]
    prose = rng.sample(prose, min(30_000, len(prose)))
    provoked = list(_provoked(root, rng))
    return [*plain, *prose, *provoked, *disguised([*plain, *provoked], prose, rng)]


def validation_texts(root: Path, dev: Sequence[Example], rng: Random) -> list[Text]:
    """Texts of the sources that are kept for thresholds, and the safety data's dev rows; a few changed."""
    hate, real, jailbreak, mixed, polite, names = (root / name for name in VALIDATION)
    texts = [Text(r["text"], "vicomtech") for r in read_rows(hate) if r["label"] in ("hate", "noHate")]
    texts = rng.sample(texts, min(5_000, len(texts)))
    texts += [Text(r["text"], "rtp") for r in read_rows(real)]
    for row in read_rows(jailbreak):
        texts += [Text(piece, "inthewild") for piece in chunks(row["text"], rng.choice((300, 420)), 4, rng)]
    texts += [Text(r["data"][:LONGEST], "guardrails_demo") for r in read_rows(mixed)]
    for row in read_rows(polite):
        texts += [Text(piece, "dpo_replies") for piece in pieces(row["chosen"], rng)]
    texts += [Text(m.text, "wnut17") for m in wnut(names)]
    kept = [Text(e.text, f"dev/{e.source}") for e in dev if e.source not in _KEPT_BACK]
    harmless = [t for t in texts if t.source == "dpo_replies"]
    changed = disguised(texts, harmless, rng, share=0.15)
    return [*texts, *kept, *changed]


def build_texts(root: Path, seed: int, most: int) -> tuple[list[Text], list[Text]]:
    """Those to learn from, `most` of them, and those to choose thresholds on. Raises FileNotFoundError for
    a source."""
    data = build(root, seed)
    rng = Random(f"first stage {seed}")
    train = training_texts(root, data.train, rng)
    return (
        rng.sample(train, min(most, len(train))),
        validation_texts(root, data.dev, Random(f"thresholds {seed}")),
    )


def _provoked(root: Path, rng: Random) -> Iterator[Text]:
    """What people asked who provoked a model, what it answered, and both together."""
    for row in read_rows(root / "preference/hh_harmless_dev.jsonl.gz"):
        prompt = first_human_turn(row)
        yield Text(prompt, "hh_prompts")
        for side in ("chosen", "rejected"):
            reply = row[side].rsplit("\n\nAssistant:", 1)[-1].strip()
            yield from (Text(piece, "hh_replies") for piece in pieces(reply, rng))
            yield Text(pair(prompt[-220:], reply[:320]), "hh_pairs")


def replies(root: Path, rng: Random) -> Iterator[tuple[str, str]]:
    """Ordinary replies and talk, with their sources."""
    for name in ("llms_from_scratch_instr", "gpteacher_roleplay", "gpteacher_toolformer"):
        key = "output" if name.startswith("llms") else "response"
        rows = list(read_rows(root / f"sft/{name}.jsonl.gz"))
        yield from ((name, row[key]) for row in rng.sample(rows, min(3_000, len(rows))))
    yield from (
        ("gsm8k", row["answer"])
        for row in rng.sample(list(read_rows(root / "sft/gsm8k_train.jsonl.gz")), 1500)
    )
    for name, count in (("self_dialogue", 3_000), ("sgd_train", 2_000)):
        for row in rng.sample(list(read_rows(root / f"sft/{name}.jsonl.gz")), count):
            yield name, " ".join(row["turns"])[:1_500]


def pieces(text: str, rng: Random) -> Iterator[str]:
    """The text cut at blanks into pieces of the lengths that guards read."""
    start = 0
    while len(text) - start > 20:
        end = start + rng.randint(SHORTEST, rng.choice((160, 260, LONGEST)))
        cut = text.rfind(" ", start, end) if end < len(text) else len(text)
        cut = cut if cut > start else end
        yield text[start:cut].strip()
        start = cut


def disguised(
    texts: Sequence[Text], prose: Sequence[Text], rng: Random, share: float = 0.25
) -> Iterator[Text]:
    """Some of the texts mistyped, in other capitals, or between harmless sentences, as attackers try it."""
    changes: tuple[Callable[[str], str], ...] = (
        lambda t: mistyped(t, rng),
        str.upper,
        str.lower,
        lambda t: _beside(t, prose, rng),
        lambda t: _beside(t, prose, rng),
    )
    for text in rng.sample(list(texts), round(share * len(texts))):
        yield Text(rng.choice(changes)(text.text), text.source + CHANGED)


def mistyped(text: str, rng: Random, every: int = 20) -> str:
    """A letter in `every` swapped, doubled, dropped or replaced."""
    letters = list(text)
    for _ in range(min(len(letters), max(1, len(letters) // every))):
        i = rng.randrange(max(1, len(letters) - 1))
        kind = rng.randrange(4)
        if kind == 0:
            letters[i : i + 2] = letters[i : i + 2][::-1]
        elif kind == 1:
            letters[i : i + 1] = letters[i : i + 1] * 2
        elif kind == 2:
            letters[i : i + 1] = []
        else:
            letters[i : i + 1] = [rng.choice("abcdefghijklmnopqrstuvwxyz")]
    return "".join(letters)


def _beside(text: str, prose: Sequence[Text], rng: Random) -> str:
    before, after = rng.choice(prose).text, rng.choice(prose).text
    return rng.choice((f"{before} {text}", f"{text} {after}", f"{before} {text} {after}"))


def sources(texts: Iterable[Text]) -> dict[str, int]:
    """How many texts each source gave."""
    counts: dict[str, int] = {}
    for text in texts:
        counts[text.source] = counts.get(text.source, 0) + 1
    return counts
