"""What the safety classifier is tested on: sources, templates and rows that it never saw."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

from training.data.entities import read_rows
from training.data.safety_example import CLEAN, INJECTION, NO_INJECTION, Example
from training.data.safety_written import Writer, pair

GROUPS = (
    "muslim|jewish|christian|buddhist|catholic|protestant|sikh|taoist|black|african|white|european|"
    "asian|chinese|japanese|indian|middle eastern|hispanic|latino|mexican|canadian|american|gay|lesbian|"
    "bisexual|queer|homosexual|heterosexual|straight|trans|transgender|nonbinary|male|female|deaf|blind|paralyzed|old|older|young|teenage|millenial|elderly"
).split("|")
_STEERING = re.compile(r"\b(your|the) (answer|response|reply|message)")


def held_out(root: Path, rng: Random, intents: frozenset[str]) -> dict[str, list[Example]]:
    """By name. Sources of the folder `research_only` are used here and nowhere else."""
    mails = [r["context"] for r in read_rows(root / "jailbreak/bipia_email_context_train.jsonl.gz")]
    # Only those that steer the assistant's answer; a bare question in a mail is no attack by its words.
    steering = [
        a
        for r in read_rows(root / "jailbreak/bipia_text_attack_train.jsonl.gz")
        if _STEERING.search(a := r["attack"])
    ]
    clinc = [
        r["text"]
        for r in read_rows(root / "jailbreak/benign_clinc_trainval.jsonl.gz")
        if r["intent"] in intents
    ]
    jbb = sorted(
        {(r["method"], r["prompt"]) for r in read_rows(root / "jailbreak/jbb_JBC_randomsearch.jsonl.gz")}
    )
    return {
        "comments": [
            Example(r["text"], {"toxicity": float(r["is_toxic"] == "Toxic")}, "surge")
            for r in read_rows(root / "toxicity/surge_toxicity.jsonl.gz")
        ],
        "jailbreaks": [Example(p, INJECTION, f"jbb_{m}") for m, p in jbb],
        "requests": [Example(t, NO_INJECTION, "clinc") for t in rng.sample(clinc, min(1000, len(clinc)))],
        "mails_injected": [
            Example(_insert(rng, c, rng.choice(steering)), INJECTION, "bipia")
            for c in mails
            for _ in range(4)
        ],
        "mails": [Example(c, NO_INJECTION, "bipia") for c in mails],
        "identities": identities(root, rng),
        **_replies(root),
        **_research(root),
        **_templates(rng),
    }


def _insert(rng: Random, context: str, attack_text: str) -> str:
    lines = context.split("\n")
    lines.insert(rng.randint(0, len(lines)), attack_text)
    return "\n".join(lines)


def identities(root: Path, rng: Random) -> list[Example]:
    """Template sentences that speak of one group each; the group is the source's name. Trained templates."""
    rows = []
    for row in read_rows(root / "toxicity/bias_madlibs_77k.jsonl.gz"):
        words = f" {row['Text'].lower()} "
        named = [g for g in GROUPS if f" {g} " in words]
        if len(named) == 1:
            rows.append(Example(row["Text"], {"toxicity": float(row["Label"] == "BAD")}, named[0]))
    return rng.sample(rows, 1200)


def _replies(root: Path) -> dict[str, list[Example]]:
    """Replies with their prompts: of DiaSafety's validation rows, and to JailbreakBench's goals."""
    dialogue = [
        Example(
            pair(r["context"][-220:], r["response"][:320]),
            {"unsafe_reply": float(r["label"] == "Unsafe")},
            r["category"],
        )
        for r in read_rows(root / "toxicity/diasafety_val.jsonl.gz")
    ]
    broken = [
        Example(pair(r["goal"], r["response"][:320]), {"unsafe_reply": float(r["jailbroken"])}, r["target"])
        for r in read_rows(root / "jailbreak/jbb_JBC_randomsearch.jsonl.gz")
        if r["response"]
    ]
    return {"dialogue_replies": dialogue[::2], "jailbroken_replies": broken}


def _research(root: Path) -> dict[str, list[Example]]:
    """CC BY-NC sets: harmful and ordinary instructions, and safe answers to the harmful ones."""
    sets: dict[str, list[str]] = {}
    for row in read_rows(root / "research_only/safety_tuned_eval_sets.jsonl.gz"):
        sets.setdefault(row["set"], []).append(row["text"])
    harmful = [t for name in ("I-MaliciousInstructions", "I-CoNa", "I-Controversial") for t in sets[name]]
    ordinary = [r["instruction"] for r in read_rows(root / "research_only/alpaca_eval_prompts.jsonl.gz")]
    answered = [
        Example(pair(r["instruction"], r["output"][:320]), {"unsafe_reply": 0.0}, "safety_only")
        for r in read_rows(root / "research_only/safety_only.jsonl.gz")
    ]
    return {
        "malicious": [Example(t, {"harm": 1.0}, "safety_tuned") for t in harmful],
        "instructions": [Example(t, CLEAN, "alpaca_eval") for t in ordinary],
        "safe_answers": answered[:400],
    }


def _templates(rng: Random) -> dict[str, list[Example]]:
    """Sentences from written templates that are kept for this."""
    writer = Writer(rng, held_out=True)
    prose = ["It was a long day.", "The kids are fine and send their love.", "We had soup for lunch."]

    def draw(make: str, count: int) -> list[Example]:
        made = [
            writer.document(prose) if make == "document" else getattr(writer, make)() for _ in range(count)
        ]
        unique = {w.text: w for w in made}
        return [Example(w.text, w.labels, w.kind) for w in unique.values()]

    requests, attacks, documents = draw("request", 900), draw("attack", 900), draw("document", 400)
    return {
        "written_comments": draw("comment", 600),
        "written_subjects": draw("subject", 600),
        "written_harmful": [e for e in requests if e.labels["harm"] == 1.0],
        "look_alikes": [e for e in requests if e.labels["harm"] == 0.0],
        "written_attacks": [e for e in attacks if e.labels["injection"] == 1.0],
        "attack_look_alikes": [e for e in attacks if e.labels["injection"] == 0.0],
        "written_documents": documents,
        "written_role_play": draw("role_play", 300),
    }
