"""`keel feedback`: what people said, out of the store as training data; pairs to compare, into it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn

import orjson
import typer

from service.settings import ConfigError, Settings
from service.store.database import Database, StoreError

feedback_app = typer.Typer(help="Feedback: export it, see how raters agree.", no_args_is_help=True)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A YAML file with settings.")]
ROLES = ("system", "user", "assistant")


@feedback_app.command()
def export(
    out: Annotated[Path | None, typer.Option(help="Write here; without it, to standard output.")] = None,
    reviews: Annotated[
        bool, typer.Option("--reviews", help="Decided reviews as labelled texts, in place of feedback.")
    ] = False,
    since: Annotated[datetime | None, typer.Option(help="Only what was said from then on, in UTC.")] = None,
    policy: Annotated[str | None, typer.Option(help="Only what is about this policy.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write feedback and comparisons as JSON lines that `keel-train feedback` reads.

    Only what was kept with its text can be exported: policies say `feedback: {store: text}` for that.
    """
    from service.export import Exported, agreement, feedback_rows, review_rows

    begin = since.replace(tzinfo=UTC).timestamp() if since else 0.0
    exported = Exported()

    async def run(database: Database) -> dict[str, Any]:
        with _writing(out) as file:
            make = review_rows if reviews else feedback_rows
            async for row in make(database, exported, begin, policy):
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        return await agreement(database)

    found = _with_store(config, run)
    print(exported.report(), file=sys.stderr)
    if not reviews:
        print(_told(found), file=sys.stderr)


@feedback_app.command("agreement")
def show_agreement(config: ConfigOption = None) -> None:
    """How far raters agree, as Krippendorff's alpha: 1 is agreement, 0 chance."""
    from service.export import agreement

    print(_told(_with_store(config, agreement)))


@feedback_app.command("import-pairs")
def import_pairs(
    file: Annotated[Path, typer.Argument(help="JSON lines: prompt, first, second.")],
    config: ConfigOption = None,
) -> None:
    """Put pairs of replies into the store for raters to compare.

    A prompt is a text or a list of messages. `gap`, the first reply's reward less the second's, says how sure
    a model is already; pairs near 0 are shown first. A pair that is there already changes nothing.
    """
    from service.pairing import pair_row
    from service.store.comparisons import pairs
    from service.store.writer import insert_rows

    rows = []
    try:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            if line.strip():
                rows.append(pair_row(**_pair(line, f"{file}:{number}")))
    except OSError as error:
        _fail(f"{file} can't be read: {error.strerror}")

    async def run(database: Database) -> None:
        async with database.change() as connection:
            if rows:
                await insert_rows(connection, pairs, rows)

    _with_store(config, run)
    print(f"{len(rows)} pairs")


def _pair(line: bytes, where: str) -> dict[str, Any]:
    """The arguments of a pair's row. Ends the command where the line is wrong."""
    try:
        given = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        _fail(f"{where}: not JSON: {error.msg}")
    if not isinstance(given, dict) or given.keys() - {"prompt", "first", "second", "objective", "gap"}:
        _fail(f"{where}: a pair has 'prompt', 'first', 'second', and maybe 'objective' and 'gap'")
    prompt, first, second = given.get("prompt"), given.get("first"), given.get("second")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        _fail(f"{where}: 'prompt' must be a text, or a list of messages with 'role' and 'content'")
    if not all(isinstance(reply, str) and reply.strip() for reply in (first, second)) or (
        str(first).strip() == str(second).strip()
    ):
        _fail(f"{where}: 'first' and 'second' must be two different texts")
    gap, objective = given.get("gap"), given.get("objective", "overall")
    if not (gap is None or isinstance(gap, int | float)) or not isinstance(objective, str):
        _fail(f"{where}: 'gap' must be a number, 'objective' a word")
    more = {"gap": gap, "objective": objective[:64]}
    return {"prompt": turns, "first": first, "second": second, "source": "import", **more}


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
        return False
    return turn["role"] in ROLES and isinstance(turn["content"], str)


def _told(found: dict[str, Any]) -> str:
    lines = [f"{found['judgements']} judgements by {found['raters']} raters, {found['skipped']} skipped"]
    for name, what in (("pairs", "pairs"), ("thumbs", "replies")):
        one = found[name]
        value = "–" if one["alpha"] is None else f"{one['alpha']:.2f}"
        judged = f"{one['several']} of {one['judged']} {what} judged by several raters"
        lines.append(f"agreement on {name}: alpha {value} ({judged})")
    return "\n".join(lines)


@contextmanager
def _writing(out: Path | None) -> Iterator[IO[bytes]]:
    if out is None:
        yield sys.stdout.buffer
        return
    try:
        with out.open("wb") as file:
            yield file
    except OSError as error:
        _fail(f"{out} can't be written: {error.strerror}")


def _with_store(config: Path | None, run: Any) -> Any:
    try:
        settings = Settings.load(config)
    except ConfigError as error:
        _fail(str(error))

    async def opened() -> Any:
        database = Database(settings.store_url)
        try:
            return await run(database)
        finally:
            await database.close()

    try:
        return asyncio.run(opened())
    except StoreError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"keel: {message}", file=sys.stderr)
    raise typer.Exit(2)
