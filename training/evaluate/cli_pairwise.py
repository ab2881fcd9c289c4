"""`keel-train evaluate pairwise`, `human` and `constitution`: replies that were written before, judged."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.data.preferences import write_preferences
from training.errors import ConfigError
from training.evaluate.cli_arguments import (
    add_judge,
    judge_of,
    name_of,
    parsed,
    parser_for,
    rewards_of,
    tell,
)
from training.evaluate.constitution import evaluate_replies, evaluate_text
from training.evaluate.human import Key, as_preferences, make_key, read_answers, report, write_sheet
from training.evaluate.metrics import Figure
from training.evaluate.pairwise import PairwiseReport, compare_replies
from training.evaluate.replies import paired, read_replies
from training.evaluate.report import EvaluationFile, Metric, questions_digest
from training.methods.rlaif import read_constitution


def pairwise(argv: Sequence[str]) -> int:
    """Which of two files of replies wins."""
    parser = parser_for("pairwise", "The win rate of one file of replies against another.")
    _add_files(parser)
    parser.add_argument("--reward", type=Path, help="a reward model decides, in place of a judge")
    parser.add_argument("--criterion", help="what the judge is asked, such as 'Which reply is more polite?'")
    add_judge(parser)
    arguments = parsed(parser, argv)
    prompts, ours, theirs = paired(arguments.a, arguments.b)
    if arguments.reward is not None:
        reward = rewards_of([arguments.reward])
        if reward is None or isinstance(reward, dict):
            raise ConfigError("--reward: give one reward model")
        by, found = (
            name_of(arguments.reward),
            compare_replies(ours, theirs, prompts, reward, seed=arguments.seed),
        )
    else:
        with judge_of(arguments) as judge:
            by = judge.name
            found = compare_replies(
                ours,
                theirs,
                prompts,
                judge.judge,
                workers=judge.workers,
                criterion=arguments.criterion,
                seed=arguments.seed,
            )
    print("\n".join(found.lines()))
    name = f"{arguments.a.stem} against {arguments.b.stem}, by {by}"
    metrics = _pairwise_metrics(found, len(prompts))
    tell(
        EvaluationFile(
            subject=name, questions=questions_digest(prompts), seed=arguments.seed, metrics=metrics
        ),
        arguments.out,
    )
    return 0


def human(argv: Sequence[str]) -> int:
    """Sheets for people: `human sheet` writes them, `human report` reads the answers."""
    if argv[:1] == ["sheet"]:
        return _sheet(argv[1:])
    if argv[:1] == ["report"]:
        return _answers(argv[1:])
    print("usage: keel-train evaluate human sheet --a REPLIES --b REPLIES --folder DIR")
    print("       keel-train evaluate human report --key KEY.json RATER=ANSWERS.csv …")
    return 0 if argv[:1] in (["-h"], ["--help"]) else 2


def constitution(argv: Sequence[str]) -> int:
    """A text, or a file of replies, against a constitution."""
    parser = parser_for("constitution", "Hold a text or replies against a constitution.")
    parser.add_argument("--constitution", required=True, help="a shipped one's name, or a YAML file")
    parser.add_argument("--text", help="the text itself")
    parser.add_argument("--prompt", default="Write a text.", help="what the text replies to")
    parser.add_argument("--replies", type=Path, help='JSON lines {"prompt", "reply"} instead')
    add_judge(parser)
    arguments = parsed(parser, argv)
    if (arguments.text is None) == (arguments.replies is None):
        raise ConfigError("give --text TEXT or --replies FILE")
    rules = read_constitution(arguments.constitution)
    with judge_of(arguments) as judge:
        if arguments.text is not None:
            critique = evaluate_text(arguments.text, rules, judge.judge, arguments.prompt)
            for violation in critique.violations:
                print(f"{violation.severity:<9} {violation.principle}: {violation.evidence}")
            print(f"severity {critique.severity:g}, {len(critique.violations)} principles violated")
            return 0
        rows = [
            (prompt, reply) for prompt, texts in read_replies(arguments.replies).items() for reply in texts
        ]
        prompts, replies = [prompt for prompt, _ in rows], [reply for _, reply in rows]
        found = evaluate_replies(prompts, replies, rules, judge.judge, judge.workers)
    file = EvaluationFile(
        subject=arguments.replies.stem,
        questions=questions_digest(prompts),
        seed=arguments.seed,
        metrics=found.metrics(),
    )
    tell(file, arguments.out)
    return 0


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--a", type=Path, required=True, help="replies of the one, from `evaluate policy --replies`"
    )
    parser.add_argument("--b", type=Path, required=True, help="replies of the other to the same prompts")


def _sheet(argv: Sequence[str]) -> int:
    parser = parser_for("human sheet", "Write blind sheets for people, and their key.")
    _add_files(parser)
    parser.add_argument(
        "--folder", type=Path, required=True, help="where sheet.csv, sheet.html and key.json go"
    )
    parser.add_argument("--rows", type=int, help="at most so many, drawn with the seed")
    arguments = parsed(parser, argv)
    prompts, ours, theirs = paired(arguments.a, arguments.b)
    key = make_key(
        prompts, ours, theirs, (arguments.a.stem, arguments.b.stem), arguments.seed, arguments.rows
    )
    sheet, page, place = write_sheet(arguments.folder, key)
    print(f"{len(key.rows)} rows in {sheet} and {page}; keep {place} from the raters")
    return 0


def _answers(argv: Sequence[str]) -> int:
    parser = parser_for("human report", "Read filled sheets.")
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--preferences", type=Path, help="also write the answers as training data")
    parser.add_argument("sheets", nargs="+", metavar="RATER=FILE")
    arguments = parsed(parser, argv)
    key = Key.read(arguments.key)
    answers = {}
    for text in arguments.sheets:
        rater, equals, path = text.partition("=")
        if not equals or rater in answers:
            raise ConfigError(f"{text}: write RATER=FILE, each rater once")
        answers[rater] = read_answers(Path(path), key)
    found = report(key, answers)
    print("\n".join(found.lines()))
    if arguments.preferences is not None:
        print(f"{write_preferences(arguments.preferences, as_preferences(key, answers))} preferences written")
    metrics = [
        Metric.averaged("win_rate", found.outcomes, "wins and half of the ties", "people's answers", key.seed)
    ]
    if found.alpha is not None:
        alpha = Figure(found.alpha, found.alpha, found.alpha, len(found.outcomes))
        metrics.append(
            Metric.of("agreement", alpha, "Krippendorff's alpha, without interval", "people's answers")
        )
    subject = f"{key.a} against {key.b}, by people"
    file = EvaluationFile(subject=subject, questions=key.digest, seed=key.seed, metrics=tuple(metrics))
    if arguments.out is not None:
        file.write(arguments.out)
    return 0


def _pairwise_metrics(found: PairwiseReport, count: int) -> tuple[Metric, ...]:
    data = f"{len(found.counted)} of {count} pairs"
    metrics = [
        Metric.averaged("win_rate", found.counted, "wins and half of the ties", data, found.seed),
        Metric.of("decided", found.decided, "share that is no tie", data),
    ]
    if found.judgements is not None and found.judgements.given:
        judged = found.judgements
        metrics.append(Metric.of("agreement", judged.agreement(), "share where both orders agree", data))
        metrics.append(
            Metric.of("position_bias", judged.position_bias(), "lean to the first reply, −½ to ½", data)
        )
    return tuple(metrics)
