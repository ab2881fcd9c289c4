"""What the safety classifier is trained and tested on: real sources and written texts, mixed.

Whole sources are held out for evaluation (`HELD_OUT`), because rows of a seen source flatter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

from training.data.entities import Marked, build_entities, read_rows, without_entities
from training.data.safety_attacks import attack
from training.data.safety_benign import abuse, harmless_requests, look_alike, mention, role_play
from training.data.safety_carriers import document
from training.data.safety_example import CLEAN, INJECTION, NO_INJECTION, Example, SafetyData
from training.data.safety_held_out import held_out
from training.data.safety_short import short_attack, short_request
from training.data.safety_sources import exchanges, first_human_turn, jailbreaks, ordinary, toxicity
from training.data.safety_written import Writer, Written

HELD_OUT = (
    "toxicity/surge_toxicity.jsonl.gz",
    "toxicity/diasafety_val.jsonl.gz",
    "jailbreak/jbb_JBC_randomsearch.jsonl.gz",
    "jailbreak/bipia_email_context_train.jsonl.gz",
    "jailbreak/bipia_text_attack_train.jsonl.gz",
    "pii/wnut17_dev.jsonl.gz",
    "research_only/safety_only.jsonl.gz",
    "research_only/safety_tuned_eval_sets.jsonl.gz",
    "research_only/alpaca_eval_prompts.jsonl.gz",
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
# Sources that write names with capitals, so that a text without capitals holds none.
_CAPITALISED = frozenset(
    "red_instruct attack_synthetic mention role_play vicomtech instructions document_clean".split()
)


def build(root: Path, seed: int = 0, scale: float = 1.0) -> SafetyData:
    """All examples, from the folder of the shared data; `scale` sizes the written part.

    Raises FileNotFoundError where a source is missing.
    """
    rng = Random(seed)
    held_intents = held_out_intents(root, rng)
    plain, requests = ordinary(root, rng, held_intents)
    jailbroken, role_play_test = jailbreaks(root / "jailbreak", rng)
    harmful = [r["text"] for r in read_rows(root / "harmful_prompts/red_instruct.jsonl.gz")]
    rng.shuffle(harmful)
    harm_test, harm_train = harmful[:400], harmful[400:]
    prose = [
        s
        for e in plain
        if e.source in ("gpteacher", "self_dialogue", "sgd_train")
        for s in re.split(r"(?<=[.!?])\s+", e.text)
        if 20 < len(s) < 160
    ]
    rows = [*toxicity(root / "toxicity", rng), *plain, *jailbroken]
    rows += [Example(t, {"harm": 1.0, "injection": 0.0}, "red_instruct") for t in harm_train]
    rows += [
        Example(first_human_turn(r), NO_INJECTION, "hh_prompts")
        for r in read_rows(root / "preference/hh_harmless_dev.jsonl.gz")
    ]
    rows += _synthetic(rng, harm_train, requests, prose, scale)
    rows += written(rng, prose, requests, exchanges(root, rng), scale)
    named = build_entities(root, seed, round(9000 * scale), prose)
    rng.shuffle(rows)
    size = len(rows) // 25
    dev, train = rows[:size], [_roughened(e, rng) for e in rows[size:]]
    train = [_nameless(e) for e in train]
    train += _short(rng, requests, scale)
    train += _marked(named["train"], {})
    dev += _marked(named["dev"], {})
    rng.shuffle(train)
    test = {**held_out(root, Random(f"held out {seed}"), held_intents), "role_play": role_play_test}
    test["harmful_requests"] = [Example(t, {"harm": 1.0}, "red_instruct") for t in harm_test]
    test |= {name: _marked(named[f"test_{name}"], {}) for name in ("presidio", "wnut17", "written")}
    return SafetyData(train, dev, test)


def held_out_intents(root: Path, rng: Random) -> frozenset[str]:
    """The kinds of ordinary requests that are kept for tests."""
    intents = sorted({r["intent"] for r in read_rows(root / "jailbreak/benign_clinc_trainval.jsonl.gz")})
    return frozenset(rng.sample(intents, 30))


def entity_tests(root: Path, seed: int) -> dict[str, list[Example]]:
    """The held-out texts with names marked, alone: none of the written training rows are made."""
    named = build_entities(root, seed, 0, [])
    return {name: _marked(named[f"test_{name}"], {}) for name in ("presidio", "wnut17", "written")}


def written(
    rng: Random, prose: Sequence[str], requests: Sequence[str], real: Sequence[tuple[str, str]], scale: float
) -> list[Example]:
    """Examples of the written texts, without doubles, and attacks beside harmless requests."""
    writer = Writer(rng)
    made: list[Written] = []
    for make, count in (
        (writer.comment, 25_000),
        (writer.subject, 13_000),
        (writer.request, 28_000),
        (writer.attack, 25_000),
        (writer.role_play, 3_000),
        (writer.system_prompt, 7_000),
        (lambda: writer.document(prose), 16_000),
        (lambda: writer.exchange(real), 14_000),
    ):
        made += [make() for _ in range(round(count * scale))]
    unique = {w.text: w for w in made}
    examples = [Example(w.text, w.labels, w.kind) for w in unique.values()]
    for example in rng.sample(examples, round(6_000 * scale)):
        if example.labels.get("injection") is None or len(example.text) > 300:
            continue
        other = rng.choice(requests) if rng.random() < 0.5 else rng.choice(prose)
        glue = rng.choice((" ", ". ", "\n", "\n\n"))
        text = f"{other}{glue}{example.text}" if rng.random() < 0.6 else f"{example.text}{glue}{other}"
        examples.append(Example(text, example.labels, example.source))
    return examples


def _synthetic(
    rng: Random, harm: list[str], requests: list[str], prose: list[str], scale: float
) -> list[Example]:
    def count(n: int) -> range:
        return range(round(n * scale))

    attacks = sorted({attack(rng, harm) for _ in count(7000)})
    rng.shuffle(attacks)
    examples = [Example(a, INJECTION, "attack_synthetic") for a in attacks]
    for _ in count(3500):
        examples.append(Example(document(rng, True, attacks, prose), INJECTION, "document_injected"))
    for _ in count(3500):
        examples.append(Example(document(rng, False, (), prose), CLEAN, "document_clean"))
    for make, n, name in (
        (role_play, 800, "role_play"),
        (mention, 500, "mention"),
        (look_alike, 800, "look_alike"),
    ):
        spans = () if make is look_alike else None  # no names in these; a dangerous word is not one
        examples += [Example(make(rng), CLEAN, name, spans) for _ in count(n)]
    for _ in count(1200):
        text = f"{rng.choice(attacks)}\n{harmless_requests(rng, requests)}"
        if rng.random() < 0.5:
            text = f"{harmless_requests(rng, requests)} {rng.choice(attacks)}"
        examples.append(Example(text, INJECTION, "attack_synthetic"))
    for _ in count(1500):
        examples.append(Example(harmless_requests(rng, requests), CLEAN, "request_synthetic"))
    for _ in count(3000):
        text, labels = abuse(rng)
        alone = text
        if rng.random() < 0.4:  # comments are seldom one sentence
            before, after = rng.choice(prose), rng.choice(prose)
            text = rng.choice((f"{before} {text}", f"{text} {after}", f"{before} {text} {after}"))
        spans = () if text is alone else None
        examples.append(Example(text, {**NO_INJECTION, **labels}, "abuse_synthetic", spans))
    return examples


def _roughened(example: Example, rng: Random) -> Example:
    """A fifth of the texts in lower case, some shouted, mistyped or in leetspeak: of every class."""
    text, roll = example.text, rng.random()
    if roll < 0.2:
        text = text.lower()
    elif roll < 0.23:
        text = text.upper()
    elif roll < 0.29 and len(text) > 8:
        for _ in range(max(1, len(text) // 40)):
            i = rng.randrange(len(text) - 1)
            text = rng.choice(
                (
                    text[:i] + text[i + 1 :],
                    text[:i] + text[i + 1] + text[i] + text[i + 2 :],
                    text[:i] + text[i] + text[i:],
                )
            )
    elif roll < 0.31:
        share = rng.choice((0.3, 1.0))
        text = "".join(_LEET.get(c, c) if rng.random() < share else c for c in text)
    # Edits move offsets: only the knowledge that there is no name survives them.
    return Example(text, example.labels, example.source, () if example.spans == () else None)


_LEET = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"}


def _nameless(example: Example) -> Example:
    """Texts that hold no name, as far as capitals tell, say so to the entity head too."""
    if (
        example.source in _CAPITALISED
        and example.spans is None
        and next(without_entities([example.text]), None)
        and not any(c.isdigit() for c in example.text)
    ):
        return Example(example.text, example.labels, example.source, ())
    return example


def _short(rng: Random, requests: list[str], scale: float) -> list[Example]:
    """Short attacks and their harmless likes, alone and behind an ordinary request."""
    examples = []
    for _ in range(round(2500 * scale)):
        text, like = short_attack(rng), short_request(rng)
        if rng.random() < 0.25:
            before = rng.choice(requests)
            text, like = f"{before}. {text}", f"{before}. {like}"
        examples.append(Example(text, INJECTION, "attack_synthetic"))
        examples.append(Example(like, CLEAN, "mention"))
    return examples


def _marked(rows: Iterable[Marked], labels: Mapping[str, float]) -> list[Example]:
    return [Example(m.text, labels, m.source, m.spans) for m in rows]
