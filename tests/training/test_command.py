"""Configs from YAML and back, and the arguments that every method's command takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import cli
from training.command import run_command
from training.config import Config
from training.errors import ConfigError


class Inner(Config):
    rate: float = 0.1
    names: tuple[str, ...] = ()


class Outer(Config):
    name: str
    steps: int = 5
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: ours\nparts: [{rate: 1}, {rate: 2}]\n")
    return path


def test_a_config_prints_as_the_yaml_that_it_is_read_from(file: Path, tmp_path: Path) -> None:
    config = Outer.load(file, ["inner.names=[a, b]"])
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert Outer.load(tmp_path / "again.yaml") == config


def test_set_overrides_options_at_any_depth(file: Path) -> None:
    config = Outer.load(file, ["steps=7", "inner.rate=1e-3", "parts.1.rate=0.5", "name=theirs"])
    assert (config.steps, config.inner.rate, config.parts[1].rate, config.name) == (7, 0.001, 0.5, "theirs")
    assert config.parts[0].rate == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("parts.2.rate=1", "there is no '2'"),
        ("steps=[", "not valid YAML"),
        ("stepz=3", "stepz"),
        ("steps=many", "steps: Input should be a valid integer"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Outer.load(file, [override])


def test_the_command_runs_checks_and_names_the_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[Outer, Path, Path]] = []

    def run(config: Outer, data: Path, place: Path) -> Path:
        calls.append((config, data, place))
        return place / "final"

    def command(*arguments: str) -> int:
        argv = ["--config", str(file), "--data", "d", *arguments]
        return run_command("try", "Tries.", Outer, run, argv, lambda config, data: f"{config.name} in {data}")

    assert command("--check", "--set", "steps=9") == 0
    printed = capsys.readouterr().out
    assert "steps: 9" in printed
    assert printed.endswith("ours in d\n")
    assert not calls
    assert command() == 0
    assert command("--run", "elsewhere") == 0
    assert [place for _, _, place in calls] == [Path("runs/ours"), Path("elsewhere")]


def test_a_missing_training_package_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `make serve`, which installs no TRL."""
    monkeypatch.setitem(cli.COMMANDS, "dpo", cli.Command("package_that_is_not_there:main", "missing"))
    assert cli.main(["dpo"]) == 1
    assert "'package_that_is_not_there'" in (told := capsys.readouterr().err)
    assert "make env-dev" in told


def test_a_module_of_ours_that_is_missing_is_a_fault_and_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "dpo", cli.Command("training.nothing:main", "missing"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["dpo"])
