"""`keel policy`: check, read, compare and try policies."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardrails.build import GuardEnvironment, build_guards, problems
from guardrails.chain import check_texts
from guardrails.parts import GuardReport, Part, PartResult
from guardrails.runtime import Runtime
from guardrails.servable import ServableError
from guardrails.verdict import Action
from policies.diff import differences
from policies.errors import PolicyError, UnknownPolicy
from policies.explain import suggestion
from policies.load import SHIPPED, LoadedPolicy, PolicyLibrary, load_policy
from policies.registry import Registry
from policies.spec import PolicySpec
from service.auth import KeyFile, KeyFileError
from service.engine.observer import NullObserver
from service.engines import Engines, Target
from service.judges import Judges
from service.settings import ConfigError, Settings

policy_app = typer.Typer(
    help="Policies: validate, show, diff, try.", no_args_is_help=True, rich_markup_mode="markdown"
)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]
PolicyArgument = Annotated[str, typer.Argument(help="A policy's name, or a policy file.")]

_STYLES = {
    Action.ALLOW: "green",
    Action.REDACT: "yellow",
    Action.REWRITE: "yellow",
    Action.ESCALATE: "red",
    Action.BLOCK: "bold red",
}


@policy_app.command()
def validate(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Policy files and folders; default: those that are served.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Check policy files, and tell **everything** that is wrong with them. Exits with 1 if anything is.

    Checked are keys and values, expressions, entities, schemas, checkpoints, whether the output guards
    can work on a stream, and, where no paths are given, what the tenants of the settings change.

        keel policy validate

        keel policy validate policies/ experimental/assistant.yaml
    """
    settings = _settings(config)
    environment = _environment(settings)
    wrong = 0
    for path in paths or [SHIPPED, *settings.policies]:
        try:
            library = PolicyLibrary(
                [path], environment.registry, check=lambda spec: problems(spec, environment), shipped=None
            )
        except PolicyError as error:
            wrong += len(error.faults)
            print(error, file=sys.stderr)
            continue
        for policy in library.snapshot().values():
            print(f"ok  {policy.name}  {policy.digest[:12]}  {policy.path}")
        if not library.names():
            print(f"{path}: no policy files (*.yaml, *.yml) here", file=sys.stderr)
    if settings.tenants and not paths and not wrong:
        wrong += _validate_tenants(settings, environment)
    if wrong:
        print(f"{wrong} problem{'s' if wrong > 1 else ''}", file=sys.stderr)
        raise typer.Exit(1)


def _validate_tenants(settings: Settings, environment: GuardEnvironment) -> int:
    """The tenants' files against all policies; how many problems they have."""
    try:
        library = PolicyLibrary(
            settings.policies,
            environment.registry,
            check=lambda spec: problems(spec, environment),
            tenants=settings.tenants,
        )
    except PolicyError as error:
        print(error, file=sys.stderr)
        return len(error.faults)
    for name, policy in library.snapshot().items():
        if policy.tenant is not None:
            print(f"ok  {name}  {policy.digest[:12]}  {policy.path}")
    _note_keys_of_nobody(settings, library)
    return 0


def _note_keys_of_nobody(settings: Settings, library: PolicyLibrary) -> None:
    """A key that is misspelt leaves its caller with the owner's policy."""
    named = {
        (policy.path, key)
        for policy in library.snapshot().values()
        for key in (policy.tenant.keys if policy.tenant else ())
    }
    try:
        known = {caller.name for caller in KeyFile(settings.key_file).load()}
    except KeyFileError as error:
        _fail(str(error))
    known |= {f"settings-{number}" for number, _ in enumerate(settings.api_keys, 1)}
    for path, key in sorted(named, key=str):
        if key not in known:
            hint = suggestion(key, sorted(known))
            print(f"note: {path}: there is no key {key!r} yet{hint}", file=sys.stderr)


@policy_app.command()
def show(
    policy: PolicyArgument,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print a policy as it is in force: every default written out, with its digest.

    keel policy show standard
    """
    loaded = _policy(policy, _settings(config))
    data = loaded.spec.model_dump(mode="json")
    if as_json:
        print(json.dumps({"digest": loaded.digest, "path": str(loaded.path), "policy": data}, indent=2))
        return
    print(f"# {loaded.path}\n# digest {loaded.digest}")
    print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100), end="")


@policy_app.command()
def diff(first: PolicyArgument, second: PolicyArgument, config: ConfigOption = None) -> None:
    """Tell what two policies do differently; comments, order of keys and spelled-out defaults don't count.
    Exits with 1 if they differ.

        keel policy diff standard strict

        keel policy diff standard ./standard.yaml
    """
    settings = _settings(config)
    found = differences(_policy(first, settings).spec, _policy(second, settings).spec)
    for place, before, after in found:
        if before is None:
            print(f"+ {place}: {_compact(after)}")
        elif after is None:
            print(f"- {place}: {_compact(before)}")
        else:
            print(f"~ {place}: {_compact(before)} → {_compact(after)}")
    raise typer.Exit(1 if found else 0)


@policy_app.command("try")
def try_(
    policy: PolicyArgument,
    text: Annotated[str, typer.Argument(help="The text, or - to read it from the standard input.")],
    stage: Annotated[Literal["input", "output"], typer.Option(help="Which guards examine it.")] = "input",
    role: Annotated[str | None, typer.Option(help="Who says it: user, tool, system … ")] = None,
    prompt: Annotated[str, typer.Option(help="What an output answers.")] = "",
    tool: Annotated[
        str | None, typer.Option(help="The text is the arguments of a call of this tool.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON, without the text that was found.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Run a policy's guards over a text, and show what each of them says: also what it lets pass.

    Nothing is generated and nothing is kept. All guards run to the end, so that thresholds can be chosen
    from their scores.

        keel policy try standard "I'm Ann Lee, ann@example.org"

        keel policy try standard --stage output "You are an idiot."

        keel policy try strict --stage output --tool send_mail '{"to": "ann@example.org"}'

        cat notes.txt | keel policy try ./mine.yaml - --role tool
    """
    settings = _settings(config)
    loaded = _policy(policy, settings, checked=True)
    part = Part(
        role=role or ("user" if stage == "input" else "assistant"),
        text=sys.stdin.read() if text == "-" else text,
        stage=stage,
        channel="tool_arguments" if tool else "content",
        prompt=prompt,
        tool_name=tool,
    )
    try:
        with Console(stderr=True).status("loading guards"):
            result = asyncio.run(_examine(loaded, part, settings))
    except ServableError as error:
        _fail(str(error))
    if stage == "input" and part.role not in loaded.spec.roles:
        print(
            f"note: policy {loaded.name!r} does not examine what role {part.role!r} says when it serves",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps(_as_json(loaded, result), indent=2))
    else:
        _print_result(loaded, result, stage)


async def _examine(loaded: LoadedPolicy, part: Part, settings: Settings) -> PartResult:
    runtime = Runtime(workers=1)
    environment = _environment(settings, runtime)
    guards = build_guards(loaded.spec, environment)
    chosen = guards.input if part.stage == "input" else guards.output
    needed = frozenset().union(*(guard.servables for guard in chosen)) & guards.servables.keys()
    engines = Engines(settings, environment.registry, NullObserver())
    try:
        targets = {
            judge.policy: _judge_target(judge.policy, settings, engines)
            for judge in guards.judges
            if judge.policy is not None
        }
        runner = Judges(runtime, engines, targets.__getitem__)
        for judge in guards.judges:
            if judge.upstream is not None:
                runner.bind(judge.upstream)
        await engines.start()
        await runtime.start({name: guards.servables[name] for name in needed})
        result = await check_texts(chosen, [part], runner, policy_digest=loaded.digest)
        return result.parts[0]
    finally:
        await runtime.aclose()
        await engines.stop()


def _judge_target(name: str, settings: Settings, engines: Engines) -> Target:
    """The model of another policy, where it is somebody's server; none is started for a try."""
    spec = _policy(name, settings).spec
    if not spec.model.targets and settings.upstream is None:
        _fail(
            f"its judge is the model of the policy {name!r}, which only a running gateway has: "
            "ask that one, with POST /v1/checks"
        )
    return engines.target(spec)


def _print_result(loaded: LoadedPolicy, result: PartResult, stage: str) -> None:
    console = Console()
    table = Table(
        "guard", "verdict", "score", "found", "ms", title=f"{loaded.name} · {stage}", title_justify="left"
    )
    for report in result.reports:
        table.add_row(
            report.guard,
            Text(_verdict(report), _STYLES[report.action]),
            _scores(report),
            _found(report, result.part.text),
            f"{report.ms:.1f}",
        )
    console.print(table if result.reports else f"{loaded.name}: no guards at this stage")
    action = result.verdict.action
    status = "blocked" if action is Action.BLOCK else "escalated" if action.withholds else "passed"
    status = "modified" if status == "passed" and result.changed else status
    console.print(Text(status, _STYLES[action]))
    if result.text:
        console.print(Text(result.text))


def _word(action: Action) -> str:
    return action.name.lower()


def _verdict(report: GuardReport) -> str:
    if report.failure:
        return f"{report.failure} → {_word(report.action)}"
    masked = report.action is Action.REDACT and all(finding.mask for finding in report.findings)
    return "mask" if masked else _word(report.action)


def _scores(report: GuardReport) -> Text:
    lines = [f"{score:.3f} {category}" for category, score in _ranked(report)]
    return Text("\n".join(lines) or f"{report.score:.3f}")


def _ranked(report: GuardReport) -> Sequence[tuple[str, float]]:
    return sorted(report.categories.items(), key=lambda item: -item[1])


def _found(report: GuardReport, text: str) -> Text:
    """Spans with their text: shown only here, to the person who typed it."""
    found = Text()
    for finding in report.findings:
        excerpt = text[finding.start : finding.end]
        excerpt = excerpt if len(excerpt) <= 60 else f"{excerpt[:40]} … {excerpt[-15:]}"
        found.append("\n" if found else "")
        found.append(f"{finding.entity_type} ", "bold")
        found.append(f"{finding.start}–{finding.end} ")
        found.append(repr(excerpt), _STYLES[finding.action])
        found.append(f" {finding.score:.2f}")
    return found


def _as_json(loaded: LoadedPolicy, result: PartResult) -> dict[str, Any]:
    return {
        "policy": loaded.name,
        "digest": loaded.digest,
        "action": _word(result.verdict.action),
        "content": result.text,
        "guards": [
            {
                "guard": report.guard,
                "state": report.state,
                "action": _word(report.action),
                "score": report.score,
                "categories": dict(report.categories),
                "findings": [
                    {
                        "entity_type": finding.entity_type,
                        "start": finding.start,
                        "end": finding.end,
                        "score": finding.score,
                    }
                    for finding in report.findings
                ],
                "ms": report.ms,
                "failure": report.failure,
            }
            for report in result.reports
        ],
    }


def _policy(name: str, settings: Settings, *, checked: bool = False) -> LoadedPolicy:
    """The policy of this name, or in this file; with `checked`, only if it could be served."""
    environment = _environment(settings)

    def check(spec: PolicySpec) -> Any:
        return problems(spec, environment) if checked else ()

    try:
        if Path(name).suffix in (".yaml", ".yml"):
            return load_policy(Path(name), None, check=check)
        found = PolicyLibrary(settings.policies, tenants=settings.tenants, strict=False).get(name)
        if checked and found.path and found.tenant is None:
            return load_policy(found.path, None, check=check)
        return found
    except (PolicyError, UnknownPolicy) as error:
        _fail(str(error))


def _environment(settings: Settings, runtime: Runtime | None = None) -> GuardEnvironment:
    """What guards are built with here. Hashes are keyed anew each time: they are not to be compared."""
    environment = GuardEnvironment(Registry(settings.checkpoints), secrets.token_bytes(32))
    return environment if runtime is None else replace(environment, describe=runtime.describe)


def _settings(config: Path | None) -> Settings:
    try:
        return Settings.load(config)
    except ConfigError as error:
        _fail(str(error))


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fail(message: str) -> NoReturn:
    print(f"keel: {message}", file=sys.stderr)
    raise typer.Exit(2)
