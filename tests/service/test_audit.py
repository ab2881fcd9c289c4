"""The audit log: what was changed shows, what was torn is gone on with, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from service.audit import AuditLog
from service.audit_chain import Account, AuditError, Head, Record, Sealer, Verifier, read

ROOT = Path(__file__).parents[2]
KEY = b"an audit key of some length"


def written(folder: Path, count: int = 5, **options: object) -> AuditLog:
    """A log with `count` records, closed."""
    log = AuditLog(folder, **options)  # type: ignore[arg-type]
    log.open()
    for number in range(count):
        log.record("test.one", actor="key:ann", subject=f"thing-{number}", details={"number": number})
    log.close()
    return log


def verified(
    folder: Path, name: str = "gateway", key: bytes | None = None, expect: Head | None = None
) -> Account:
    return Verifier(folder, name, Sealer(key), expect).verify()


def subjects(folder: Path, name: str = "gateway") -> list[str]:
    return [record.subject for record in read(folder, name)]


@pytest.mark.parametrize("key", [None, KEY])
def test_a_chain_is_whole_and_goes_on(tmp_path: Path, key: bytes | None) -> None:
    written(tmp_path, 3, key=key)
    log = written(tmp_path, 2, key=key)
    account = verified(tmp_path, key=key)
    assert account.problems == []
    assert (account.records, account.first, account.head) == (5, 1, log.head)
    first, second, *_ = read(tmp_path, "gateway")
    assert (first.actor, first.action, first.subject) == ("key:ann", "test.one", "thing-0")
    assert first.details == {"number": 0}
    assert second.prev == first.seal
    assert first.time.endswith("Z")
    assert (tmp_path / "gateway.jsonl").stat().st_mode & 0o777 == 0o600


def change_text(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b"thing-2", b"thing-7") for line in lines]


def change_and_reseal(lines: list[bytes]) -> list[bytes]:
    record = Record(**orjson.loads(lines[2]))
    forged, _ = Sealer().line(
        Head(record.seq - 1, record.prev),
        {"time": record.time, "actor": "key:eve", "action": "x", "subject": "y", "details": {}},
    )
    return [*lines[:2], forged, *lines[3:]]


@pytest.mark.parametrize(
    ("tamper", "place"),
    [
        (change_text, "gateway.jsonl:3: record 3: its seal is wrong"),
        (change_and_reseal, "gateway.jsonl:4: record 4 does not fit"),
        (lambda lines: [*lines[:2], *lines[3:]], "gateway.jsonl:3: record 4 follows record 2"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "gateway.jsonl:2: record 1 follows record 2"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "gateway.jsonl:4: record 3 follows record 3"),
        (lambda lines: [*lines[:2], b"nothing\n", *lines[2:]], "gateway.jsonl:3: the line is no record"),
        (lambda lines: [*lines, b"nothing\n"], "gateway.jsonl:6: the line is no record"),
    ],
)
def test_what_was_changed_shows_where(
    tmp_path: Path, tamper: Callable[[list[bytes]], list[bytes]], place: str
) -> None:
    written(tmp_path)
    file = tmp_path / "gateway.jsonl"
    file.write_bytes(b"".join(tamper(file.read_bytes().splitlines(keepends=True))))
    problems = verified(tmp_path).problems
    assert problems
    assert problems[0].startswith(place)


def test_a_lost_end_shows_to_who_kept_the_head(tmp_path: Path) -> None:
    log = written(tmp_path)
    file = tmp_path / "gateway.jsonl"
    assert verified(tmp_path, expect=log.head).problems == []
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    assert verified(tmp_path).problems == []  # by itself it can't
    assert "record 5" in verified(tmp_path, expect=log.head).problems[0]


def test_with_a_key_nobody_else_can_reseal(tmp_path: Path) -> None:
    written(tmp_path, 3, key=KEY)
    assert "none was given" in verified(tmp_path).problems[0]
    assert "the one given is" in verified(tmp_path, key=b"another key of some length").problems[0]
    file = tmp_path / "gateway.jsonl"
    head, out = Head(), b""  # the whole file anew, by who has no key
    for record in list(read(tmp_path, "gateway")):
        line, head = Sealer().line(
            head, {"time": record.time, "actor": "key:eve", "action": "x", "subject": "y", "details": {}}
        )
        out += line
    file.write_bytes(out)
    account = verified(tmp_path, key=KEY)
    assert account.problems == []
    assert account.unkeyed == 3  # which `keel audit verify` refuses


def test_every_torn_end_is_gone_on_with(tmp_path: Path) -> None:
    written(tmp_path, 3)
    file = tmp_path / "gateway.jsonl"
    whole = file.read_bytes()
    third = whole.index(b'{"seq":3')
    for cut in (*range(third, len(whole), 37), len(whole) - 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        written(tmp_path, 2)
        account = verified(tmp_path)
        assert account.problems == [], cut
        kept = ["thing-2"] if cut == len(whole) - 1 else []  # only its line feed was missing
        torn = [] if cut in (third, len(whole) - 1) else ["gateway.jsonl"]
        assert subjects(tmp_path) == ["thing-0", "thing-1", *kept, *torn, "thing-0", "thing-1"], cut
        assert account.recovered == len(torn)


def test_a_torn_end_is_not_another_tampering(tmp_path: Path) -> None:
    written(tmp_path, 3)
    file = tmp_path / "gateway.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    written(tmp_path, 1)
    text = file.read_bytes()
    file.write_bytes(text.replace(b"thing-2", b"thing-9"))  # the torn line, which the next one vouches for
    assert "the line is no record" in verified(tmp_path).problems[0]


def test_a_damaged_end_is_not_built_upon(tmp_path: Path) -> None:
    written(tmp_path, 2)
    file = tmp_path / "gateway.jsonl"
    file.write_bytes(file.read_bytes().replace(b"thing-1", b"thing-9"))
    with pytest.raises(AuditError, match="damaged at its end"):
        AuditLog(tmp_path).open()


WRITE = """
import asyncio
import sys
from pathlib import Path
from service.audit import AuditLog
told = lambda action, seq: print(seq, flush=True)
log = AuditLog(Path(sys.argv[1]), max_bytes=int(sys.argv[4]), written=told)
for number in range(int(sys.argv[3])):
    log.record("test.many", actor="cli:x", subject=f"{sys.argv[2]}-{number}")
    if number % 100 == 99:
        asyncio.run(log.flush())
log.close()
"""


def writer(folder: Path, name: str, count: int, max_bytes: int = 2**26) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITE, str(folder), name, str(count), str(max_bytes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def test_several_processes_write_to_one_chain_and_rotate_it(tmp_path: Path) -> None:
    for process in [writer(tmp_path, name, 1_000, 30_000) for name in ("a", "b", "c")]:
        process.communicate(timeout=60)
        assert process.returncode == 0
    account = verified(tmp_path)
    assert account.problems == []
    assert account.records == 3_000
    found = subjects(tmp_path)
    for name in ("a", "b", "c"):
        assert [one for one in found if one.startswith(name)] == [f"{name}-{i}" for i in range(1_000)]
    full = sorted(tmp_path.glob("gateway.0*.jsonl"))
    assert len(full) >= 4
    full[0].unlink()  # kept elsewhere
    account = verified(tmp_path)
    assert account.problems == []
    assert account.first == int(full[0].suffixes[0][1:]) + 1
    full[2].unlink()
    assert "follows record" in verified(tmp_path).problems[0]


def test_kill_9_loses_nothing_that_was_written(tmp_path: Path) -> None:
    process = writer(tmp_path, "a", 1_000_000)
    assert process.stdout is not None
    seen = 0
    while seen < 2_000:
        seen = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].split(b"\n")[:-1]
    seen = int(rest[-1]) if rest else seen
    written(tmp_path, 1)
    account = verified(tmp_path)
    assert account.problems == []
    assert subjects(tmp_path)[:seen] == [f"a-{i}" for i in range(seen)]


def test_lines_that_vanish_under_a_running_log_show(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    for number in range(3):
        log.record("test.one", actor="x", subject=str(number))
        asyncio.run(log.flush())
    (tmp_path / "gateway.jsonl").unlink()
    log.record("test.one", actor="x", subject="3")
    log.close()
    account = verified(tmp_path)
    assert (account.records, account.first) == (1, 4)


async def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    told: list[str] = []
    file = tmp_path / "gateway.jsonl"
    file.symlink_to("/dev/full")
    log = AuditLog(tmp_path, failed=told.append)
    log.record("test.one", actor="x", subject="0")
    with pytest.raises(AuditError, match="can't be written"):
        await log.flush()
    assert len(told) == 1
    log.record("test.one", actor="x", subject="1")
    file.unlink()
    await log.flush()
    log.close()
    assert verified(tmp_path).problems == []
    assert subjects(tmp_path) == ["0", "1"]
    with pytest.raises(AuditError, match="closed"):
        await log.flush()


async def test_floods_are_folded_and_counted(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    for number in range(1_000):
        log.fold("admin.denied", actor="anonymous", subject="/admin", details={"client": number % 2})
    for number in range(1_000):
        log.fold("admin.read", actor="anonymous", subject=f"/admin/{number}")
    await log.flush()
    log.close()
    records = list(read(tmp_path, "gateway"))
    assert [one.details for one in records[:2]] == [{"client": 0, "count": 500}, {"client": 1, "count": 500}]
    assert len(records) < 600
    assert sum(one.details.get("count", 1) for one in records) == 2_000


def test_details_are_bounded_and_json(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    with pytest.raises(TypeError):
        log.record("test.one", actor="x", subject="y", details={"object": object()})
    log.record("test.one", actor="x" * 1_000, subject="\ud800", details={"long": "x" * 10_000})
    log.close()
    (record,) = read(tmp_path, "gateway")
    assert record.details == {"left_out": "too long", "bytes": 10_011}
    assert (len(record.actor), record.subject) == (256, "?")
    assert verified(tmp_path).problems == []
