"""`keel audit`: is the log whole, and what is in it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table

from service.audit import AuditLog, cli_actor
from service.audit_chain import (
    AuditError,
    Head,
    Record,
    Sealer,
    Verifier,
    chain_names,
    read,
    when,
)
from service.settings import ConfigError, Settings

audit_app = typer.Typer(help="The audit log: verify and show.", no_args_is_help=True)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Look here, e.g. at a copy; default: the settings'.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="One chain; default: all in the folder.")]


@audit_app.command()
def verify(
    folder: FolderOption = None,
    name: NameOption = None,
    expect: Annotated[
        str | None, typer.Option(help="SEQ:SEAL, a record that must be there: what an earlier run printed.")
    ] = None,
    unkeyed_until: Annotated[
        int, typer.Option(min=0, help="With a key: up to this record, those without are accepted.")
    ] = 0,
    config: ConfigOption = None,
) -> None:
    """Check every record against the one before it. Exits with 1 where a chain is broken, and says where.

    What a chain can't show is that its end is missing: keep the printed head elsewhere, and give it to
    --expect another time.
    """
    settings = _settings(config)
    where, names = _chains(settings, folder, name)
    wanted = _head(expect) if expect else None
    if wanted is not None and len(names) != 1:
        _fail("--expect is about one chain: say which with --name")
    broken = False
    for each in names:
        try:
            account = Verifier(where, each, Sealer(_key(settings)), wanted).verify()
        except AuditError as error:
            _fail(str(error))
        if account.unkeyed > unkeyed_until:
            account.problems.append(
                f"{each}: records up to {account.unkeyed} are not sealed with the key; "
                f"if they are older than the key, say --unkeyed-until {account.unkeyed}"
            )
        broken = broken or bool(account.problems)
        for problem in account.problems:
            print(f"BROKEN  {problem}", file=sys.stderr)
        gone = f", the {account.first - 1} before them are not here" if account.first > 1 else ""
        torn = f", {account.recovered} torn by a crash" if account.recovered else ""
        state = "BROKEN" if account.problems else "ok    "
        print(f"{state}  {each}: {account.records} records{gone}{torn}; head {account.head}")
    raise typer.Exit(1 if broken else 0)


@audit_app.command()
def show(
    action: Annotated[str | None, typer.Option(help="Actions that begin so: guard, policy.reload.")] = None,
    actor: Annotated[str | None, typer.Option(help="Actors that begin so: admin:, key:ann.")] = None,
    subject: Annotated[str | None, typer.Option(help="Subjects that begin so.")] = None,
    since: Annotated[str | None, typer.Option(help="ISO 8601, UTC where no zone is given.")] = None,
    until: Annotated[str | None, typer.Option(help="ISO 8601, UTC where no zone is given.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The last so many.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="JSON lines instead of a table.")] = False,
    folder: FolderOption = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Show the last records, oldest first. They are not verified: `keel audit verify` does that."""
    where, names = _chains(_settings(config), folder, name)
    first, last = _moment(since), _moment(until)
    prefixes = {"action": action, "actor": actor, "subject": subject}
    wanted = _filter({key: value for key, value in prefixes.items() if value}, first, last)
    found: list[tuple[str, Record]] = []
    for each in names:
        found += deque(((each, record) for record in read(where, each) if wanted(record)), maxlen=limit)
    found.sort(key=lambda one: (when(one[1].time), one[1].seq))
    found = found[-limit:]
    if json:
        for each, record in found:
            print(orjson.dumps({"chain": each, **_shown(record)}).decode())
        return
    table = Table("chain", "seq", "time", "actor", "action", "subject", "details")
    for each, record in found:
        details = orjson.dumps(record.details).decode() if record.details else ""
        moment = when(record.time).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(each, str(record.seq), moment, record.actor, record.action, record.subject, details)
    Console().print(table if found else "no such records")


def record_command(settings: Settings, action: str, subject: str, details: Mapping[str, Any]) -> None:
    """One record of what a command did, on disk when this returns. Raises `AuditError`.

    Commands write to a chain of their own beside the gateway's, so that neither waits for the other.
    """
    log = AuditLog(
        settings.audit_folder,
        f"{settings.audit.name}-cli"[:63],
        key=_key(settings),
        max_bytes=settings.audit.max_bytes,
    )
    log.open()
    log.record(action, actor=cli_actor(), subject=subject, details=details)
    log.close()


def _shown(record: Record) -> dict[str, Any]:
    return {
        "seq": record.seq,
        "time": record.time,
        "actor": record.actor,
        "action": record.action,
        "subject": record.subject,
        "details": record.details,
    }


def _filter(
    prefixes: Mapping[str, str], first: datetime | None, last: datetime | None
) -> Callable[[Record], bool]:
    def wanted(record: Record) -> bool:
        if not all(getattr(record, key).startswith(prefix) for key, prefix in prefixes.items()):
            return False
        moment = when(record.time) if first or last else None
        return moment is None or ((first is None or moment >= first) and (last is None or moment <= last))

    return wanted


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = when(text)
    except ValueError:
        _fail(f"{text!r} is no time: write it like 2026-11-26T14:00")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _chains(settings: Settings, folder: Path | None, name: str | None) -> tuple[Path, list[str]]:
    where = folder or settings.audit_folder
    names = chain_names(where)
    if name is not None and name not in names:
        _fail(f"there is no audit log {name!r} in {where}; there are: {', '.join(names) or 'none'}")
    if not names:
        _fail(f"there is no audit log in {where}; choose another folder with --folder")
    return where, [name] if name else names


def _head(text: str) -> Head:
    seq, _, seal = text.partition(":")
    if not seq.isdigit() or len(seal) != 64:
        _fail("--expect takes SEQ:SEAL, as `keel audit verify` prints it")
    return Head(int(seq), seal)


def _key(settings: Settings) -> bytes | None:
    return settings.audit.key.get_secret_value().encode() if settings.audit.key else None


def _settings(config: Path | None) -> Settings:
    try:
        return Settings.load(config)
    except ConfigError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"keel: {message}", file=sys.stderr)
    raise typer.Exit(2)
