"""`keel keys`: who may call."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from service.audit_chain import AuditError
from service.auth import KeyFile, KeyFileError, Role
from service.cli_audit import record_command
from service.settings import ConfigError, Settings

keys_app = typer.Typer(help="API keys: create, list and revoke.", no_args_is_help=True)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="What you will know this key by: a person, a service.")],
    role: Annotated[
        Role, typer.Option(help="api: for /v1. admin: for everything. rater: to compare replies, no more.")
    ] = "api",
    admin: Annotated[bool, typer.Option("--admin", help="The same as --role admin.")] = False,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    config: ConfigOption = None,
) -> None:
    """Create a key and print it. It is shown this once: only its hash is stored."""
    settings = _settings(config)
    file = KeyFile(settings.key_file)
    role = "admin" if admin else role
    try:
        key = file.create(
            name,
            role=role,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    except KeyFileError as error:
        _fail(str(error))
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    _record(settings, "keys.create", name, {"role": role, **limits})
    print(
        f"Key {name!r} is stored, hashed, in {file.path}; this is the only time it is shown:", file=sys.stderr
    )
    print(key)


@keys_app.command("list")
def list_keys(config: ConfigOption = None) -> None:
    """List the keys: names and limits."""
    file = KeyFile(_settings(config).key_file)
    try:
        callers = file.load()
    except KeyFileError as error:
        _fail(str(error))
    table = Table("name", "for", "requests/min", "tokens/min", "created", title=str(file.path))
    for caller in callers:
        table.add_row(
            caller.name,
            caller.role,
            str(caller.requests_per_minute or "-"),
            str(caller.tokens_per_minute or "-"),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(caller.created)),
        )
    Console().print(table if callers else f"no keys in {file.path}; make one with `keel keys create NAME`")


@keys_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name, see `keel keys list`.")],
    config: ConfigOption = None,
) -> None:
    """Revoke a key. Running gateways refuse it within seconds."""
    settings = _settings(config)
    try:
        KeyFile(settings.key_file).revoke(name)
    except KeyFileError as error:
        _fail(str(error))
    _record(settings, "keys.revoke", name, {})
    print(f"revoked {name!r}")


def _settings(config: Path | None) -> Settings:
    try:
        return Settings.load(config)
    except ConfigError as error:
        _fail(str(error))


def _record(settings: Settings, action: str, name: str, details: dict[str, Any]) -> None:
    try:
        record_command(settings, action, name, details)
    except AuditError as error:
        _fail(f"it is done, but could not be recorded: {error}")


def _fail(message: str) -> NoReturn:
    print(f"keel: {message}", file=sys.stderr)
    raise typer.Exit(2)
