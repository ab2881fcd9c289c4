"""Each row has its result or its own error, in every backend; killed runs go on and repeat nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.batch.work import Logged, Refusal, Unopenable, slow_first, square
from tests.training.tiny_reward import KIND, PROMPTS, REPLIES, RUDE, reward_model
from training.batch import Backend, RowError, iter_rows, map_rows
from training.data.preferences import prompt_as_json
from training.errors import TrainingError
from training.reward_model import RewardModel

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_results_are_in_order_and_errors_in_their_rows(backend: Backend, tmp_path: Path) -> None:
    keep = tmp_path / "kept.jsonl"
    rows = map_rows([3, -1, 2], square, workers=2, backend=backend, keep=keep, errors=Refusal)
    assert [row if isinstance(row, Exception) else row["square"] for row in (rows[0], rows[2])] == [9, 4]
    assert isinstance(rows[1], Refusal if backend == "threads" else RowError)
    assert "-1 is negative" in str(rows[1])
    pids = {row["pid"] for row in rows if not isinstance(row, Exception)}
    assert (os.getpid() in pids) == (backend == "threads")
    assert sorted(json.loads(line)["item"] for line in keep.read_text().splitlines()) == [0, 2]


def test_results_can_be_had_as_they_come() -> None:
    places = [place for place, _ in iter_rows([0, 1, 2], slow_first, workers=2)]
    assert sorted(places) == [0, 1, 2]
    assert places[-1] == 0


def test_other_errors_end_the_run() -> None:
    with pytest.raises(Refusal):
        map_rows([1, -1], square, errors=KeyError)


def test_work_is_opened_once_a_worker(tmp_path: Path) -> None:
    log = tmp_path / "log"
    map_rows(list(range(40)), Logged(log), workers=2, backend="processes")
    lines = log.read_text().split()
    assert 1 <= lines.count("opened") <= 2
    assert sorted(int(line) for line in lines if line != "opened") == list(range(40))


def test_work_that_cannot_be_opened_or_sent_says_so() -> None:
    with pytest.raises(TrainingError, match="could not open its work"):
        map_rows([1], Unopenable(), backend="processes")
    with pytest.raises(TrainingError, match="can't be sent to other processes"):
        map_rows([1], lambda value: {"value": value}, backend="processes")


KILLED = """
import sys
from pathlib import Path
from tests.training.batch.work import Logged
from training.batch import map_rows

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    work = Logged(folder / "log", 0.05)
    map_rows(list(range(60)), work, workers=2, backend=sys.argv[2], keep=folder / "kept")
"""


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_run_that_was_killed_goes_on_and_repeats_nothing_that_was_kept(
    backend: Backend, tmp_path: Path
) -> None:
    script, kept, log = tmp_path / "run.py", tmp_path / "kept", tmp_path / "log"
    script.write_text(KILLED)
    argv = [sys.executable, str(script), str(tmp_path), backend]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=env, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while not (kept.exists() and kept.read_text().count("\n") >= 5):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    lines = kept.read_text().splitlines(keepends=True)
    done = [json.loads(line)["item"] for line in lines if line.endswith("\n")]
    assert 5 <= len(done) < 60
    time.sleep(0.3)  # workers that lost their parent have ended
    log.unlink()
    rows = map_rows(list(range(60)), Logged(log), workers=2, backend=backend, keep=kept)
    assert [row["square"] for row in rows if not isinstance(row, Exception)] == [n * n for n in range(60)]
    again = [int(line) for line in log.read_text().split() if line != "opened"]
    assert sorted([*done, *again]) == list(range(60))


@pytest.mark.parametrize("backend", ["processes", "ray"])
@pytest.mark.slow
def test_replies_are_scored_as_the_reward_model_scores_them(backend: str, tmp_path: Path) -> None:
    model = reward_model()
    model.save(tmp_path / "reward")
    pairs = [(prompt, reply) for prompt in PROMPTS for reply in (*REPLIES, KIND + RUDE)]
    replies = tmp_path / "replies.jsonl"
    lines = [json.dumps({"prompt": prompt_as_json(p), "reply": r}) for p, r in pairs]
    replies.write_text("".join(line + "\n" for line in lines))
    out = tmp_path / "scored.jsonl"
    argv = [sys.executable, "-m", "training.cli", "score", "--reward", str(tmp_path / "reward")]
    argv += ["--replies", str(replies), "--out", str(out), "--workers", "2", "--backend", backend]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 replies scored" in done.stdout
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["reply"] for row in scored] == [reply for _, reply in pairs]
    wanted = RewardModel.load(tmp_path / "reward").score(*map(list, zip(*pairs, strict=True)))
    assert [row["reward"] for row in scored] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert not list(tmp_path.glob("*.partial"))
