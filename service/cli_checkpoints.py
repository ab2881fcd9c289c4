"""`keel checkpoints`: what is in the registry, whether it is what was published, and what aliases mean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from policies.history import Allowance
from policies.registry import Registry, RegistryError
from service.hotload.remote import GatewaySaysNo, Unreachable, ask_gateway
from service.hotload.unserved import swap_unserved
from service.settings import ConfigError, Settings

checkpoints_app = typer.Typer(
    help="Checkpoints: list, verify, promote, roll back.", no_args_is_help=True, rich_markup_mode="markdown"
)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The running gateway; default: where the settings let it listen.")
]
OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline", help="Only move the alias in the registry; gateways that watch it verify and follow."
    ),
]


@checkpoints_app.command("list")
def list_(config: ConfigOption = None) -> None:
    """List the checkpoints of the registry, with their aliases."""
    registry = _registry(_settings(config))
    try:
        found, aliases = registry.checkpoints(), registry.aliases()
    except RegistryError as error:
        _fail(str(error))
    table = Table("name", "kind", "digest", "size", "aliases", "description", title=str(registry.root))
    for checkpoint in found:
        size = sum(file.bytes for file in checkpoint.manifest.files)
        names = sorted(alias for alias, ref in aliases.items() if ref == checkpoint.ref)
        table.add_row(
            checkpoint.name,
            checkpoint.manifest.kind,
            checkpoint.digest[:16],
            f"{size / 2**20:.1f} MiB",
            ", ".join(names) or "-",
            checkpoint.manifest.description,
        )
    Console().print(table if found else f"no checkpoints in {registry.root}")


@checkpoints_app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names, aliases or name@digest; default: all.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Check every byte against the manifests. Exits with 1 if anything differs."""
    registry = _registry(_settings(config))
    failed = False
    for name in names or registry.names():
        try:
            checkpoint = registry.resolve(name)
            registry.verify(checkpoint)
        except RegistryError as error:
            failed = True
            print(f"FAILED  {error}", file=sys.stderr)
        else:
            print(f"ok      {checkpoint.ref}")
    raise typer.Exit(1 if failed else 0)


@checkpoints_app.command()
def history(alias: Annotated[str, typer.Argument(help="An alias.")], config: ConfigOption = None) -> None:
    """What an alias has meant, newest first."""
    registry = _registry(_settings(config))
    try:
        moves, current = registry.history(alias), registry.aliases().get(alias)
    except RegistryError as error:
        _fail(str(error))
    if current is None:
        _fail(f"there is no alias {alias!r} in {registry.root}")
    print(f"now {' ' * 27}{current}")
    for move in reversed(moves):
        print(f"{move.at:%Y-%m-%d %H:%M:%S} {move.how:<10} {move.ref}")


@checkpoints_app.command()
def promote(
    ref: Annotated[str, typer.Argument(help="A checkpoint's name, or name@digest.")],
    alias: Annotated[
        str | None, typer.Option("--alias", help="What is to mean it; default: the registry's only alias.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look whether it would be refused; change nothing.")
    ] = False,
    new_template: Annotated[
        bool, typer.Option("--new-template", help="Its chat template may differ from the former's.")
    ] = False,
    new_tokenizer: Annotated[
        bool, typer.Option("--new-tokenizer", help="Its tokenizer may differ from the former's.")
    ] = False,
    offline: OfflineOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Let an alias mean another checkpoint, in the running gateway, without a request that fails.

    The checkpoint is verified, loaded beside the one that answers, and tried with the canary prompts; only
    then is the alias moved. Exits with 1 when it is refused; nothing has changed then.

        keel checkpoints promote chat-v2 --alias chat

        keel checkpoints promote chat-v2@3f6ad0c1 --alias chat --dry-run
    """
    settings = _settings(config)
    allow: list[Allowance] = []
    if new_template:
        allow.append("template")
    if new_tokenizer:
        allow.append("tokenizer")
    body = {"ref": ref, "alias": alias or _only_alias(settings), "allow": allow, "dry_run": dry_run}
    _swap(settings, "promote", body, offline, url)


@checkpoints_app.command()
def rollback(
    alias: Annotated[str | None, typer.Argument(help="An alias; default: the registry's only one.")] = None,
    offline: OfflineOption = False,
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Let an alias mean again what it meant before. A second time goes one step further back.

    keel checkpoints rollback chat
    """
    settings = _settings(config)
    _swap(settings, "rollback", {"alias": alias or _only_alias(settings)}, offline, url)


def _swap(settings: Settings, what: str, body: dict[str, object], offline: bool, url: str | None) -> None:
    """Through the running gateway; where none runs, on the registry alone."""
    if not offline:
        try:
            result = ask_gateway(settings, url, what, body, _tell)
        except Unreachable as error:
            if url is not None:
                _fail(str(error))
            print(f"{error}: the registry alone is changed; a gateway that starts or watches it follows")
        except GatewaySaysNo as error:
            _fail(str(error))
        else:
            _conclude(result)
    _conclude(swap_unserved(_registry(settings), what, body, settings.engine.max_adapter_rank, _tell))


def _tell(step: str, seen: str) -> None:
    print(f"  {step:<14} {seen}", flush=True)


def _conclude(result: dict[str, object]) -> NoReturn:
    alias, outcome, ref = result["alias"], result["outcome"], result["ref"]
    if outcome == "refused":
        print(f"refused: {result['reason']}\n{alias} still means {ref or 'nothing'}", file=sys.stderr)
        raise typer.Exit(1)
    said = {"checked": "would be accepted; nothing was changed, it means", "unchanged": "already means"}
    print(f"{alias} {said.get(str(outcome), 'means')} {ref} ({result['seconds']} s)")
    raise typer.Exit(0)


def _only_alias(settings: Settings) -> str:
    registry = _registry(settings)
    try:
        aliases = sorted(registry.aliases())
    except RegistryError as error:
        _fail(str(error))
    if len(aliases) != 1:
        there = f"there are: {', '.join(aliases)}" if aliases else "there is none yet"
        _fail(f"which alias? Say it; {there}")
    return aliases[0]


def _settings(config: Path | None) -> Settings:
    try:
        return Settings.load(config)
    except ConfigError as error:
        _fail(str(error))


def _registry(settings: Settings) -> Registry:
    return Registry(settings.checkpoints)


def _fail(message: str) -> NoReturn:
    print(f"keel: {message}", file=sys.stderr)
    raise typer.Exit(2)
