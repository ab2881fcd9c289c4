"""The commands of `keel`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from service.cli_audit import audit_app
from service.cli_checkpoints import checkpoints_app
from service.cli_definitions import definitions_app
from service.cli_experiments import experiments_app
from service.cli_feedback import feedback_app
from service.cli_keys import keys_app
from service.cli_policy import policy_app
from service.settings import ConfigError, Settings

app = typer.Typer(
    help="Keel: a gateway that keeps a language model aligned while it answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(policy_app, name="policy")
app.add_typer(keys_app, name="keys")
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(feedback_app, name="feedback")
app.add_typer(audit_app, name="audit")
experiments_app.add_typer(definitions_app)
app.add_typer(experiments_app, name="experiments")


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="A YAML file with settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8000); 0 takes a free one.")] = None,
    policies: Annotated[
        list[Path] | None, typer.Option(help="A folder of policy files; may be repeated.")
    ] = None,
    experiments: Annotated[
        list[Path] | None, typer.Option(help="A folder of experiment files; may be repeated.")
    ] = None,
    upstream: Annotated[str | None, typer.Option(help="An OpenAI-compatible server that answers.")] = None,
    model: Annotated[str | None, typer.Option(help="The model's name at the upstream.")] = None,
) -> None:
    """Serve OpenAI's API in front of vLLM or another upstream, with the guards of your policies.

    Without options: the shipped policies, the checkpoint in the registry, a vLLM of its own, on
    http://127.0.0.1:8000. Every setting can also come from --config or from a KEEL_* variable.
    """
    from service.serve import run

    overrides: dict[str, Any] = {}
    given = {"host": host, "port": port, "policies": policies, "experiments": experiments}
    for name, value in given.items():
        if value is not None:
            overrides[name] = value
    if (upstream is None) != (model is None):
        _fail("--upstream and --model belong together: where the server is, and what to ask it for")
    if upstream is not None:
        overrides["upstream"] = {"base_url": upstream, "model": model}
    try:
        status = run(Settings.load(config, **overrides))
    except ConfigError as error:
        _fail(str(error))
    raise typer.Exit(status)


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def redteam(context: typer.Context) -> None:
    """Attack a policy of a running gateway, and report what got through. `keel redteam --help` says more."""
    raise typer.Exit(_plugin("redteam")(context.args))


def _plugin(name: str) -> Callable[[Sequence[str]], int]:
    """A command that another of Keel's packages brings: the gateway's imports none of them by name."""
    found = metadata.entry_points(group="keel.commands", name=name)
    if not found:
        _fail(f"the command {name!r} is not installed; 'make env' installs Keel whole")
    command: Callable[[Sequence[str]], int] = next(iter(found)).load()
    return command


def _fail(message: str) -> NoReturn:
    print(f"keel: {message}", file=sys.stderr)
    raise typer.Exit(2)
