"""`keel redteam`: attack a running gateway, and say what got through.

keel redteam --policy standard                              every strategy on every behaviour
keel redteam --policy standard --before open --out reports  with and without guards, HTML and JSON
keel redteam --policy standard --attacker learner --budget 300
keel redteam --policy standard --replay reports/cases.jsonl --fail-above 0
keel redteam --list

Exit status: 0 done and within the limits; 1 a rate above its limit; 2 nothing that can be relied on (wrong
arguments, no answer from the gateway, most requests failed).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.errors import TrainingError
from training.files import write_text
from training.judge.client import ServerConfig
from training.redteam import api, harvest
from training.redteam.attack import STRATEGIES, Attack, make_attack, parts
from training.redteam.attacker import Attacker, Learner, Uniform, default_arms
from training.redteam.behavior import Behavior, choose, load_behaviors, shipped_packs
from training.redteam.campaign import SEARCHED, Attempt
from training.redteam.report import Report
from training.redteam.report_html import page
from training.redteam.searching import searched
from training.redteam.target import HttpTarget, TargetError
from training.redteam.twins import twins_of
from training.redteam.verdicts import ClassifierJudge, ModelRubric, ReplyJudge, RulesRubric

PASSED, FAILED, UNUSABLE = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="keel redteam",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = made.add_argument_group("what is attacked")
    what.add_argument(
        "--target", default="http://127.0.0.1:8000", metavar="URL", help="the gateway (%(default)s)"
    )
    what.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="a policy; give it twice to compare two, both are held to the limits (standard)",
    )
    what.add_argument(
        "--before",
        metavar="NAME",
        help="another policy that gets the same attacks, such as open; held to no limit",
    )
    what.add_argument("--api-key-env", metavar="VARIABLE", help="the environment variable that holds the key")
    how = made.add_argument_group("how")
    how.add_argument(
        "--packs", nargs="+", default=[], metavar="PACK", help="domains, or files of your own (all)"
    )
    how.add_argument(
        "--behaviors", type=int, metavar="N", help="so many behaviours, evenly over domains (all)"
    )
    how.add_argument(
        "--strategies", nargs="+", default=[], metavar="NAME", help="a+b composes; --list names them"
    )
    how.add_argument("--budget", type=int, metavar="N", help="so many attacks, chosen by --attacker")
    how.add_argument("--attacker", choices=("uniform", "learner"), default="learner", help="(%(default)s)")
    how.add_argument(
        "--search", action="store_true", help="change blocked texts against the live scores until they pass"
    )
    how.add_argument("--replay", type=Path, metavar="FILE", help="send the cases of an earlier run again")
    how.add_argument("--no-twins", action="store_true", help="leave the harmless twins out")
    how.add_argument("--max-tokens", type=int, default=96, metavar="N", help="of a reply (%(default)s)")
    how.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests at a time (%(default)s)"
    )
    how.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    who = made.add_argument_group("who judges (canaries need no judge)")
    who.add_argument(
        "--judge-url", metavar="URL", help="an OpenAI-compatible server with a judge; else rules"
    )
    who.add_argument("--judge-model", metavar="NAME")
    who.add_argument("--judge-key-env", metavar="VARIABLE")
    who.add_argument(
        "--classifier", type=Path, metavar="DIR", help="a second opinion: a safety checkpoint's folder"
    )
    out = made.add_argument_group("what comes of it")
    out.add_argument(
        "--out", type=Path, metavar="DIR", help="report.html, report.json, cases, pairs, sheet.csv"
    )
    out.add_argument("--by", choices=("strategy", "domain", "family", "hazard", "goal"), default="strategy")
    out.add_argument(
        "--fail-above", type=_rate, metavar="RATE", help="exit with 1 if more attacks succeed (0..1)"
    )
    out.add_argument(
        "--fail-refusals-above",
        type=_rate,
        metavar="RATE",
        help="exit with 1 if more harmless twins get no answer (0..1)",
    )
    out.add_argument("--list", action="store_true", help="name the strategies and packs, and end")
    return made


def _rate(text: str) -> float:
    """A share: whoever writes 5 for 5 % would have a limit that nothing is above."""
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 1; 5 % is 0.05")
    return rate


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for a rate above its limit, 2 for what can't be run."""
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.fail_refusals_above is not None and arguments.no_twins:
        made.error("--fail-refusals-above is about harmless twins; leave out --no-twins")
    console = Console()
    try:
        if arguments.list:
            _list(console)
            return PASSED
        report, behaviors = _run(arguments, console)
        console.print(report.table(arguments.by))
        if arguments.out is not None:
            _write(arguments.out, report, behaviors, console)
        return _status(arguments, report, console)
    except TrainingError as error:
        print(f"keel redteam: {error}", file=sys.stderr)
        return UNUSABLE


def _run(arguments: argparse.Namespace, console: Console) -> tuple[Report, Sequence[Behavior]]:
    for name in arguments.strategies:
        parts(name)
    policies = [*(arguments.policy or ["standard"]), *([arguments.before] if arguments.before else [])]
    targets = [
        HttpTarget(
            arguments.target,
            policy,
            api_key_env=arguments.api_key_env,
            max_tokens=arguments.max_tokens,
            concurrency=arguments.concurrency,
            seed=arguments.seed,
        )
        for policy in dict.fromkeys(policies)
    ]
    replayed = None if arguments.replay is None else harvest.read_cases(arguments.replay)
    behaviors: Sequence[Behavior] = (
        choose(load_behaviors(arguments.packs), arguments.behaviors, arguments.seed)
        if replayed is None
        else tuple({attack.behavior.id: attack.behavior for attack in replayed}.values())
    )
    judges = _judges(arguments)
    try:
        api.greeted(targets)
    except TargetError as error:
        raise TrainingError(
            f"{error}\nNothing was attacked. --target, --policy and --api-key-env say whom to ask and how; "
            "`keel serve` starts a gateway"
        ) from error
    try:
        report = _attacked(arguments, targets, behaviors, replayed, judges, console)
    finally:
        for judge in judges:
            if isinstance(judge, ModelRubric):
                judge.close()
    _check(report, arguments.target)
    checkpoints = sorted({a.checkpoint for a in report.attempts if a.checkpoint})
    about = {
        "behaviours": str(len({a.behavior for a in report.attempts})),
        "strategies": str(len({a.strategy for a in report.attempts})),
        "attacks": str(len(report.attempts)),
        "judged by": ", ".join([*(judge.name for judge in judges), "canaries"]),
        "checkpoint": ", ".join(checkpoints) or "not told",
    }
    return report.model_copy(update={"about": about}), behaviors


def _attacked(
    arguments: argparse.Namespace,
    targets: Sequence[HttpTarget],
    behaviors: Sequence[Behavior],
    replayed: Sequence[Attack] | None,
    judges: Sequence[ReplyJudge],
    console: Console,
) -> Report:
    seed, concurrency = arguments.seed, arguments.concurrency
    twins = () if arguments.no_twins else twins_of(behaviors, seed)
    hunted: list[Attempt] = []
    with _bar(console) as bar:
        if replayed is not None:
            attacks = tuple(replayed)
        elif arguments.budget is not None:
            hunted = api.hunted(
                targets[0],
                behaviors,
                _attacker(arguments, behaviors),
                judges,
                budget=arguments.budget,
                seed=seed,
                progress=_telling("hunting", arguments.budget, bar, console),
            )
            attacks = _repeated(hunted, behaviors, seed)
        else:
            attacks = tuple(
                attack for b in behaviors for attack in api.attacks_for(b, arguments.strategies, seed)
            )
        if arguments.search:
            tell = _telling("searching", len(attacks), bar, console)
            attacks = searched(targets[0], attacks, seed=seed, console=console, progress=lambda: tell(None))
        # What was hunted has been sent to the first target already, but not what a search made of it.
        first = [attack for attack in attacks if not hunted or attack.strategy.endswith(SEARCHED)]
        asked = [first, *([attacks] * (len(targets) - 1))]
        progress = _telling("attacking", sum(map(len, asked)) + len(twins) * len(targets), bar, console)
        reports = [
            api.asked([target], sent, twins, judges, seed=seed, concurrency=concurrency, progress=progress)
            for target, sent in zip(targets, asked, strict=True)
        ]
    report = Report.merged(reports)
    return report.model_copy(update={"attempts": (*hunted, *report.attempts)})


def _repeated(attempts: Sequence[Attempt], behaviors: Sequence[Behavior], seed: int) -> tuple[Attack, ...]:
    """What an attacker tried on the first target, for the others."""
    by_id = {behavior.id: behavior for behavior in behaviors}
    return tuple(make_attack(by_id[attempt.behavior], attempt.strategy, seed) for attempt in attempts)


def _attacker(arguments: argparse.Namespace, behaviors: Sequence[Behavior]) -> Attacker:
    arms = arguments.strategies or default_arms()
    if arguments.attacker == "uniform":
        return Uniform(behaviors, arms, arguments.seed)
    return Learner(behaviors, arms, arguments.seed)


def _judges(arguments: argparse.Namespace) -> list[ReplyJudge]:
    judges: list[ReplyJudge] = [RulesRubric()]
    if (arguments.judge_url is None) != (arguments.judge_model is None):
        raise TrainingError("--judge-url and --judge-model belong together")
    if arguments.judge_url is not None:
        config = ServerConfig(
            base_url=arguments.judge_url, model=arguments.judge_model, api_key_env=arguments.judge_key_env
        )
        judges.insert(0, ModelRubric(config))
    if arguments.classifier is not None:
        judges.append(ClassifierJudge(arguments.classifier))
    return judges


def _check(report: Report, url: str) -> None:
    """Nothing that could be counted is no clean bill of health."""
    everything: Sequence[Attempt] = [*report.attempts, *report.twins]
    failed = [attempt for attempt in everything if not attempt.counted]
    if failed and len(failed) * 2 > len(everything):
        raise TrainingError(f"{url}: {len(failed)} of {len(everything)} requests failed: {failed[0].error}")


def _write(folder: Path, report: Report, behaviors: Sequence[Behavior], console: Console) -> None:
    report.write(folder / "report.json")
    write_text(folder / "report.html", page(report))
    successes = report.successes()
    cases = harvest.write_cases(folder / "cases.jsonl", successes, behaviors)
    pairs = harvest.write_pairs(folder / "pairs.jsonl", successes) if successes else 0
    rows = harvest.write_sheet(folder / "sheet.csv", report.attempts)
    console.print(
        f"{folder}: report.html, report.json, {cases} cases to replay, {pairs} pairs to train on, "
        f"a sheet with {rows} replies for people"
    )


def _status(arguments: argparse.Namespace, report: Report, console: Console) -> int:
    """Every policy but the one that is there for comparison is held to the limits."""
    status = PASSED
    for policy in dict.fromkeys(arguments.policy or ["standard"]):
        for limit, figure, what in (
            (arguments.fail_above, report.success_rate(policy), "attacks succeeded"),
            (arguments.fail_refusals_above, report.over_refusal(policy), "harmless twins got no answer"),
        ):
            if limit is None:
                continue
            if figure is None:
                console.print(f"{policy}: nothing was counted of which {what}; the limit was not tested")
            elif figure.value > limit:
                console.print(
                    f"[bold red]failed[/]: {policy}: {figure.percent()} of {figure.n} {what}, "
                    f"{100 * limit:g} % are allowed"
                )
                status = FAILED
    return status


def _list(console: Console) -> None:
    table = Table("strategy", "family", "what it does", title="Strategies (a+b composes them)")
    for name in sorted(STRATEGIES, key=lambda n: (STRATEGIES[n].family, n)):
        table.add_row(name, STRATEGIES[name].family, STRATEGIES[name].about)
    console.print(table)
    packs = Table("pack", "behaviours", title="Packs")
    for pack in shipped_packs():
        packs.add_row(pack, str(len(load_behaviors([pack]))))
    console.print(packs)
    console.print(f"A text that was searched on is called NAME{SEARCHED}.")


def _telling(what: str, total: int, bar: Progress, console: Console) -> Callable[[Attempt | None], None]:
    """Moves the bar; where none can be drawn (a log), tells every tenth of the way in a line."""
    task, done = bar.add_task(what, total=total), itertools.count(1)

    def tell(_: Attempt | None) -> None:
        bar.advance(task)
        now = next(done)
        if not console.is_terminal and 10 * now // total > 10 * (now - 1) // total:
            console.print(f"{what}: {now} of {total}")

    return tell


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


if __name__ == "__main__":
    sys.exit(main())
