"""`keel checkpoints`: what is published here, and whether it still is what was published."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from policies.registry import Registry, RegistryError
from service.settings import ConfigError, Settings

checkpoints_app = typer.Typer(help="Checkpoints: list and verify.", no_args_is_help=True)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]


@checkpoints_app.command("list")
def list_checkpoints(config: ConfigOption = None) -> None:
    """List the checkpoints in the registry, with their aliases."""
    registry = _registry(config)
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
    registry = _registry(config)
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


def _registry(config: Path | None) -> Registry:
    try:
        return Registry(Settings.load(config).checkpoints)
    except ConfigError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"keel: {message}", file=sys.stderr)
    raise typer.Exit(2)
