"""`keel experiments`: how they stand, and what to do about them. Asks a running gateway's admin API."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from service.settings import ConfigError, Settings

experiments_app = typer.Typer(help="Experiments: look at them, decide about them.", no_args_is_help=True)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The gateway; default: the settings' host and port.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print what the gateway answered.")]
NameArgument = Annotated[str, typer.Argument(help="The experiment.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="For the history.")]

GOOD, BAD, CALM = "green", "bold red", "dim"
STATUS = {"running": GOOD, "completed": GOOD, "promoted": GOOD, "waiting": "yellow", "rolled_back": BAD}
VERDICT = {"within": GOOD, "crossed": BAD, "open": CALM}


@experiments_app.command("list")
def list_experiments(config: ConfigOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the experiments: how they stand, who gets what."""
    answer = ask(config, url, "GET", "")
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    table = Table("experiment", "status", "shares", "units", "limits", "as planned")
    for one in answer["experiments"]:
        look = one["look"]
        units = sum(arm["units"] for arm in look["arms"]) if look else 0
        table.add_row(
            one["name"], _status(one), _shares(one["arms"]), str(units), _limits(look), _mismatch(look)
        )
    Console().print(table if answer["experiments"] else "no experiments are served")
    for error in (*answer["errors"], *(f"{name}: {why}" for name, why in answer["refused"].items())):
        print(f"not served as it says: {error}", file=sys.stderr)


@experiments_app.command()
def show(
    name: NameArgument, config: ConfigOption = None, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """Show one: arms and intervals, limits and gates, segments, history."""
    answer = ask(config, url, "GET", f"/{name}")
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    Console().print(_page(answer))


@experiments_app.command()
def ramp(
    name: NameArgument,
    step: Annotated[int | None, typer.Option(min=1, help="Go to this step; default: begin anew.")] = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin the ramp anew, or go to one of its steps; also after a roll back or a stop."""
    _decide(config, url, name, "ramp", {"reason": reason, "step": step}, as_json)


@experiments_app.command()
def approve(
    name: NameArgument,
    step: Annotated[
        int | None, typer.Option(min=1, help="Only if this is the one; default: what waits.")
    ] = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the ramp take the step that waits for approval."""
    _decide(config, url, name, "approve", {"reason": reason, "step": step}, as_json)


@experiments_app.command()
def promote(
    name: NameArgument,
    arm: Annotated[str | None, typer.Option(help="Which; default: the ramp's, or the only other.")] = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give every request to one arm."""
    _decide(config, url, name, "promote", {"reason": reason, "arm": arm}, as_json)


@experiments_app.command()
def rollback(
    name: NameArgument,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give every request to the control."""
    _decide(config, url, name, "rollback", {"reason": reason}, as_json)


@experiments_app.command()
def stop(
    name: NameArgument,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the experiment: the control answers."""
    _decide(config, url, name, "stop", {"reason": reason}, as_json)


# Asking


def _decide(
    config: Path | None, url: str | None, name: str, action: str, body: Mapping[str, Any], as_json: bool
) -> None:
    answer = ask(config, url, "POST", f"/{name}/{action}", body)
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    shares = [{"name": arm, "share": share} for arm, share in answer["shares"].items()]
    text = Text.assemble(f"{name}: ", (answer["status"], STATUS.get(answer["status"], "")), "  ")
    Console().print(text + _shares(shares))


def ask(
    config: Path | None,
    url: str | None,
    method: str,
    path: str,
    body: Mapping[str, Any] | str | None = None,
    *,
    revision: int | None = None,
    absent: Any = None,
) -> Any:
    """The admin API's answer; with `absent`, that where there is nothing. Ends the command where it fails.

    body: an object, or a YAML text; revision: what `If-Match` says.
    """
    settings = settings_of(config)
    if settings.admin_key is None:
        fail("the admin API needs a key: set KEEL_ADMIN_KEY to an admin key")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = (url or f"http://{host}:{settings.port}").rstrip("/")
    headers = {"authorization": f"Bearer {settings.admin_key.get_secret_value()}"}
    if revision is not None:
        headers["if-match"] = f'"{revision}"'
    status, answer = asyncio.run(_call(method, f"{base}/admin/v1/experiments{path}", headers, body))
    if status == 404 and absent is not None:
        return absent
    if status >= 400:
        fail(answer.get("error", {}).get("message", f"the gateway answered {status}"))
    return answer


async def _call(
    method: str, url: str, headers: dict[str, str], body: Mapping[str, Any] | str | None
) -> tuple[int, Any]:
    import aiohttp

    sent: dict[str, Any] = {"json": body}
    if isinstance(body, str):
        sent, headers = {"data": body.encode()}, headers | {"content-type": "application/yaml"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
            session.request(method, url, headers=headers, **sent) as response,
        ):
            return response.status, await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        fail(f"no answer from the gateway at {url}: {str(error) or type(error).__name__}; is it running?")


def settings_of(config: Path | None) -> Settings:
    """The settings; ends the command where they are wrong."""
    try:
        return Settings.load(config)
    except ConfigError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Say why, and end."""
    print(f"keel: {message}", file=sys.stderr)
    raise typer.Exit(2)


# Showing


def _page(one: Mapping[str, Any]) -> Group:
    head = Text.assemble((one["name"], "bold"), "  ", _status(one), f"  epoch {one['epoch']}")
    if one["ramp"]:
        steps = " → ".join(f"{step:g} %" for step in one["ramp"]["steps"])
        head.append(
            f"\nramp of {one['ramp']['arm']}: {steps}, now at {one['ramp']['steps'][one['ramp']['step']]:g} %"
        )
        for reason in one["ramp"]["waits_for"]:
            head.append(f"\n  waits for {reason}", CALM)
    for line in (one["description"], one["reason"], one["fault"]):
        if line:
            head.append(f"\n{line}")
    parts: list[Any] = [Panel(head, expand=False), _shares(one["arms"])]
    look = one["look"]
    if look is None:
        return Group(*parts, Text("nothing has been seen yet", CALM))
    parts.append(_arms(one, look))
    if look["limits"] or look["gates"]:
        parts.append(_bounds(look))
    parts.append(Text.assemble("units as planned: ", _mismatch(look)))
    parts += [_segments(one, name, rows) for name, rows in look["segments"].items() if len(rows) > 1]
    parts.append(_history(one["history"][:10]))
    return Group(*parts)


def _arms(one: Mapping[str, Any], look: Mapping[str, Any]) -> Table:
    arms = [*look["arms"], *look["shadows"]]
    sure = f"{1 - look['alpha']:.2%}".replace(".00", "")
    title = f"estimates with intervals that hold at every look ({sure})"
    table = Table("metric", *(arm["name"] for arm in arms), title=title)
    table.add_row("units", *(str(arm["units"]) for arm in arms), style=CALM)
    table.add_row("requests", *(str(arm["requests"]) for arm in arms), style=CALM)
    for metric in one["metrics"]:
        if any(arm["metrics"][metric]["estimate"] is not None for arm in arms):
            table.add_row(metric, *(_cell(arm, metric) for arm in arms))
    return table


def _segments(one: Mapping[str, Any], dimension: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A dimension's values, a row for each arm."""
    metrics = [name for name in one["metrics"] if name in rows[0]["arms"][0]["metrics"]]
    table = Table(dimension, "arm", "units", *metrics, title=f"by {dimension}, for looking")
    for row in rows:
        for arm in row["arms"]:
            seen = (_interval(arm["metrics"][name]) for name in metrics)
            table.add_row(row["value"], arm["name"], str(arm["units"]), *seen)
    return table


def _cell(arm: Mapping[str, Any], metric: str) -> Text:
    text = _interval(arm["metrics"][metric])
    change = arm["against_control"].get(metric)
    if change and change["estimate"] is not None:
        known = change["low"] is not None and change["high"] is not None
        apart = known and (change["low"] > 0 or change["high"] < 0)
        text.append("\n")
        text.append_text(_interval(change, "bold yellow" if apart else CALM, sign="+"))
    return text


def _interval(seen: Mapping[str, Any], style: str = "", sign: str = "") -> Text:
    if seen["estimate"] is None:
        return Text("-", CALM)
    low, high = ("?" if seen[side] is None else f"{seen[side]:{sign}.4g}" for side in ("low", "high"))
    return Text(f"{seen['estimate']:{sign}.4g}  [{low}, {high}]", style)


def _bounds(look: Mapping[str, Any]) -> Table:
    table = Table("what", "arm", "bound", "now", "state")
    for kind in ("limits", "gates"):
        for bound in look[kind]:
            state = Text(bound["state"], VERDICT[bound["state"]])
            table.add_row(kind[:-1], bound["arm"], bound["bound"], _interval(bound), state)
    return table


def _history(events: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("when", "who", "what", "shares", "why", title="history")
    for event in events:
        shares = [{"name": arm, "share": share} for arm, share in event["shares"].items()]
        when = datetime.fromtimestamp(event["at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(when, event["actor"], event["action"], _shares(shares, bars=False), event["reason"])
    return table


def _status(one: Mapping[str, Any]) -> Text:
    return Text("unusable", BAD) if one["fault"] else Text(one["status"], STATUS.get(one["status"], CALM))


def _shares(arms: Sequence[Mapping[str, Any]], *, bars: bool = True) -> Text:
    text = Text()
    for index, arm in enumerate(arms):
        text.append("\n" if index and bars else "  " if index else "")
        if not bars:
            text.append(f"{arm['name']} {arm['share']:.1%}")
        else:
            text.append("█" * round(arm["share"] * 20), "cyan" if index else "blue")
            text.append("░" * (20 - round(arm["share"] * 20)), CALM)
            text.append(f" {arm['share']:6.1%} {arm['name']}")
    return text


def _limits(look: Mapping[str, Any] | None) -> Text:
    states = [bound["state"] for bound in look["limits"]] if look else []
    worst = next((state for state in ("crossed", "open", "within") if state in states), None)
    return Text(worst, VERDICT[worst]) if worst else Text("-", CALM)


def _mismatch(look: Mapping[str, Any] | None) -> Text:
    if look is None:
        return Text("-", CALM)
    p = look["mismatch"]["p"]
    return Text(f"NO (p {p:.2g})", BAD) if look["mismatch"]["alarm"] else Text(f"yes (p {p:.2g})", GOOD)
