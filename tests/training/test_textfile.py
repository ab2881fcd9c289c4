"""What runs tell Prometheus: the newest of each figure, in a file that is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from training.cli import main
from training.errors import TrainingError
from training.textfile import exposition, latest


def a_run(place: Path, lines: list[str]) -> Path:
    place.mkdir()
    (place / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return place


def test_the_newest_of_each_figure(tmp_path: Path) -> None:
    records = [
        {"step": 10, "loss": 2.0, "kl": 0.1},
        {"step": 20, "loss": 1.5},
        {"step": 30, "eval_loss": 1.0},
    ]
    run = a_run(tmp_path / "dpo", [*map(json.dumps, records), '{"step": 40, "lo'])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 35, "note": "text", "flag": true, "kl": NaN}')
    assert latest(run) == (35, {"loss": 1.5, "kl": 0.1, "flag": 1.0, "eval_loss": 1.0})


def test_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    run = a_run(tmp_path / "ppo", [json.dumps({"step": i, "loss": i / 2}) for i in range(30_000)])
    assert latest(run) == (29_999, {"loss": 14_999.5})


def test_the_command_writes_what_prometheus_reads(tmp_path: Path) -> None:
    one = a_run(tmp_path / 'a "run"', ['{"step": 1, "loss": 0.25}'])
    two = a_run(tmp_path / "two", ['{"step": 7, "reward": -1.5}'])
    (two / "final").mkdir()
    file = tmp_path / "keel.prom"
    assert main(["figures", str(one), str(two), "--textfile", str(file)]) == 0
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    assert found["keel_train_figure", 'a "run"', "loss"] == 0.25
    assert found["keel_train_figure", "reward", "two"] == -1.5
    assert found["keel_train_step", "two"] == 7
    assert (found["keel_train_finished", "two"], found["keel_train_finished", 'a "run"']) == (1, 0)
    assert found["keel_train_updated_timestamp_seconds", "two"] == (two / "metrics.jsonl").stat().st_mtime
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingError, match="no figures yet"):
        exposition([a_run(tmp_path / "empty", [])])
    assert main(["figures", str(tmp_path / "none")]) == 1
    assert "give the directory of a run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["figures", str(tmp_path), "--textfile", "x.txt"])
