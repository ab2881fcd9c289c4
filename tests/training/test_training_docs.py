"""The training documents are true: their Python runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from training import api
from training.cli import COMMANDS

ROOT = Path(__file__).parents[2]
OVERVIEW = ROOT / "docs" / "TRAINING.md"
PAGES = [OVERVIEW, *sorted((ROOT / "docs" / "training").glob("*.md"))]


@pytest.mark.slow
def test_the_python_api_does_what_the_document_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks in one namespace, in a folder that holds nothing but the checkpoints."""
    torch.set_num_threads(1)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEEL_DATA", str(tmp_path / "none"))
    section = OVERVIEW.read_text().split("## Python API")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 6
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/TRAINING.md, block {number + 1}", "exec"), namespace)  # noqa: S102
    printed = capsys.readouterr().out
    assert "learning_rate: 0.0001" in printed  # the config, as the YAML that the command takes
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == 2


def test_every_name_of_the_api_can_be_had() -> None:
    for name in api.__all__:
        assert getattr(api, name) is not None
    with pytest.raises(AttributeError, match="it has: "):
        _ = api.train_nothing


def test_every_command_is_in_the_overview() -> None:
    text = OVERVIEW.read_text()
    assert [name for name in COMMANDS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
