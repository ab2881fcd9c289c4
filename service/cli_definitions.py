"""`keel experiments validate|apply|delete|export`: their files, and those that the admin API keeps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from policies.errors import PolicyError
from policies.experiment import load_experiment
from policies.load import SHIPPED, PolicyLibrary
from policies.registry import Registry
from policies.watch import policy_files
from service.cli_experiments import (
    ConfigOption,
    NameArgument,
    UrlOption,
    ask,
    fail,
    settings_of,
)

definitions_app = typer.Typer()
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Look whether it would be taken; change nothing.")
]


@definitions_app.command()
def validate(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders of them.")],
    config: ConfigOption = None,
) -> None:
    """Check experiment files against the settings' policies. Exits with 1 if anything is wrong."""
    from service.experiments.scoring import scorer_problems  # and with it the engines: not for other commands

    settings = settings_of(config)
    shipped = SHIPPED if settings.shipped_policies else None
    registry = Registry(settings.checkpoints)
    library = PolicyLibrary(settings.policies, registry, shipped=shipped, strict=False)
    names = {policy.name for policy in library.snapshot().values()}
    check = partial(scorer_problems, registry=registry)
    failed = False
    for path in (file for given in paths for file in _files(given)):
        try:
            loaded = load_experiment(path, names, check)
        except PolicyError as error:
            failed = True
            print(error, file=sys.stderr)
        else:
            arms = ", ".join(f"{arm} {share:.0%}" for arm, share in loaded.spec.shares().items())
            print(f"ok      {loaded.name} ({arms})")
    raise typer.Exit(1 if failed else 0)


@definitions_app.command()
def apply(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders of them.")],
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    url: UrlOption = None,
) -> None:
    """Make experiments in running gateways, or replace them: all that share the store follow.

    An experiment that is replaced begins anew, unless it was rolled back, stopped or promoted.
    """
    for path in (file for given in paths for file in _files(given)):
        try:
            name = load_experiment(path).name
        except PolicyError as error:
            fail(str(error))
        there = ask(config, url, "GET", f"/{name}/definition", absent={})
        revision = None if there.get("archived", True) else there["revision"]
        where = f"/{name}?dry_run=true" if dry_run else f"/{name}"
        answer = ask(config, url, "PUT", where, path.read_text("utf-8-sig"), revision=revision)
        arms = ", ".join(f"{arm} {share:.0%}" for arm, share in answer["shares"].items())
        what = f"would be {answer['outcome']}" if dry_run else answer["outcome"]
        print(f"{what}: {name}, revision {answer['revision']} ({arms})")


@definitions_app.command()
def delete(
    name: NameArgument,
    config: ConfigOption = None,
    url: UrlOption = None,
) -> None:
    """Archive an experiment that was applied: its name answers no more, what was measured stays."""
    answer = ask(config, url, "DELETE", f"/{name}")
    print(f"{answer['outcome']}: {name}, revision {answer['revision']}")


@definitions_app.command()
def export(name: NameArgument, config: ConfigOption = None, url: UrlOption = None) -> None:
    """Print what was applied, as YAML; of an archived one too."""
    print(ask(config, url, "GET", f"/{name}/definition")["yaml"], end="")


def _files(path: Path) -> Sequence[Path]:
    try:
        return policy_files(path)
    except OSError as error:
        fail(f"{path} can't be read: {error.strerror or error}")
