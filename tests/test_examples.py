"""The examples, in a reduced profile: their data is sound, their measures measure, their configs train."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from training.data.formats import read_conversations
from training.data.preferences import as_prompt
from training.demo import gold_score
from training.methods.dpo import DpoConfig, run_dpo
from training.methods.sft import SftConfig, run_sft

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DEMO = str(ROOT / "checkpoints" / "demo-chat")


def example(folder: str, name: str) -> ModuleType:
    """The script, as a module that its own dataclasses can be found in."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def functions() -> ModuleType:
    return example("code", "functions")


def test_every_example_says_how_to_run_it() -> None:
    for name in ("chatbot", "summarization", "code"):
        text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
        assert "keel-train sft" in text
        for config in (EXAMPLES / name).glob("*.yaml"):
            assert config.name in text


# Code: tests as a reward


def test_right_bodies_pass_their_tests_and_wrong_ones_do_not(functions: ModuleType) -> None:
    tasks = list(functions.tasks(300, 0))
    assert all(functions.passed(task, task.reply(task.right)) == 1 for task in tasks)
    assert all(functions.passed(task, task.reply(task.wrong)) < 1 for task in tasks)
    unseen = {task.prompt for task in functions.tasks(300, 0, "test")}
    assert not unseen & {task.prompt for task in functions.tasks(3000, 0)}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "def f(x):",
        "def g(x):\n    return x + 3",
        "def f(x, y):\n    return x + 3",
        "x + 3",
        "def f(x):\n    return __import__('os').getpid()",
        "def f(x):\n    while True: pass",
        "def f(x):\n    return x % 0",
        "def f(x):\n    return " + "(" * 90 + "x" + ")" * 90 + " + 'a'",
        "import os\ndef f(x):\n    return x + 3",
    ],
)
def test_whatever_is_no_such_function_fails_and_nothing_is_executed(
    functions: ModuleType, reply: str
) -> None:
    task = functions.Task("f", "f", "x + 3", "x", tuple(x + 3 for x in functions.INPUTS))
    assert functions.passed(task, task.reply("x + 3")) == 1
    assert functions.passed(task, reply) == 0


def test_partial_credit_and_types(functions: ModuleType) -> None:
    task = functions.Task("f", "f", "x > 3", "", tuple(x > 3 for x in functions.INPUTS))
    assert functions.passed(task, "def f(x):\n    return x > 4") == 0.8
    assert functions.passed(task, "def f(x):\n    return 1") == 0  # 1 is not True


@pytest.mark.slow
def test_ppo_runs_on_tests_as_its_reward(functions: ModuleType, tmp_path: Path) -> None:
    history = functions.improve(Path(DEMO), tmp_path / "ppo", steps=1, rollouts=4)
    assert len(history) == 1 and 0 <= history[0]["reward"] <= 1
    assert functions.measure(tmp_path / "ppo", count=4)["pass all tests"].n == 4


# Summaries


def test_summaries_hold_every_fact() -> None:
    summaries = example("summarization", "summaries")
    found = list(summaries.reports(300, 0))
    assert all(summaries.kept(report.summary, report.facts) == 1 for report in found)
    assert all(summaries.kept(report.text, report.facts) == 1 for report in found)
    assert summaries.kept("Anna bought it.", ("Anna", "lamp", "Monday", "$3")) == 0.25
    assert summaries.kept("for $30", ("$3",)) == 0


@pytest.mark.slow
def test_the_summary_config_trains_on_what_the_script_writes(tmp_path: Path) -> None:
    summaries = example("summarization", "summaries")
    summaries.main(["data", str(tmp_path), "--count", "60"])
    assert len(list(read_conversations(tmp_path / "summaries.jsonl", "demonstrations"))) == 60
    reduced = ["steps=2", "batch_size=2", "micro_batch=2", f"model.path={DEMO}"]
    config = SftConfig.load(EXAMPLES / "summarization/sft.yaml", reduced)
    final = run_sft(config, tmp_path, tmp_path / "run")
    assert set(summaries.measure(final, count=4)) >= {"facts kept", "words"}


# Chatbot


@pytest.mark.slow
def test_the_chatbot_is_trained_in_two_steps_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chatbot = example("chatbot", "chatbot")
    reduced = ["steps=2", "batch_size=2", "micro_batch=2", "data.demo=40"]
    sft = SftConfig.load(EXAMPLES / "chatbot/sft.yaml", [*reduced, f"model.path={DEMO}"])
    first = run_sft(sft, tmp_path, tmp_path / "sft")
    assert chatbot.compare(first, tmp_path / "chatbot-pairs.jsonl", questions=20) > 20
    dpo = DpoConfig.load(EXAMPLES / "chatbot/dpo.yaml", [*reduced[:3], f"model.path={first}"])
    final = run_dpo(dpo, tmp_path, tmp_path / "dpo")
    assert set(chatbot.measure(final, questions=6)) == {"gold", "violations", "words"}
    capsys.readouterr()
    threads = torch.get_num_threads()
    chatbot.main(["ask", str(final), "Where is the kettle?"])
    torch.set_num_threads(threads)
    reply = capsys.readouterr().out.strip()
    assert isinstance(gold_score(as_prompt("Where is the kettle?"), reply), float)
