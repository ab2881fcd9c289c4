"""What several evaluations take on the command line: prompts, a model, a judge, reward models."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policies.manifest import MANIFEST_NAME
from training.data.preferences import Prompt, read_prompts
from training.demo import demo_prompts
from training.errors import ConfigError
from training.evaluate.report import EvaluationFile
from training.judge.remote import JudgeConfig
from training.judge.source import OpenJudge, RulesSource, open_judge
from training.models import ModelSource, load_policy
from training.provenance import origin
from training.reward_model import RewardFunction
from training.reward_model_ensemble import load_reward


def parser_for(what: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every evaluation has."""
    parser = argparse.ArgumentParser(prog=f"keel-train evaluate {what}", description=description)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, with torch set to as many threads as they say."""
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    return arguments


def add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=Path, help='JSON lines with a "prompt" each')
    parser.add_argument("--demo", type=int, metavar="N", help="N test questions of the demo domain instead")


def prompts_of(arguments: argparse.Namespace) -> list[Prompt]:
    """The prompts that the arguments name; raises ConfigError for none or both."""
    if (arguments.prompts is None) == (arguments.demo is None):
        raise ConfigError("give --prompts FILE or --demo N")
    if arguments.demo is not None:
        return demo_prompts(arguments.demo, arguments.seed, "test")
    return list(dict.fromkeys(read_prompts(arguments.prompts)))


def loaded(place: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in a folder, ready to answer: a run's `final/`, a published checkpoint, or an adapter."""
    model, tokenizer = load_policy(ModelSource(path=str(place)))
    model.train(False)
    return model, tokenizer


def name_of(place: Path) -> str:
    """What a model is called in reports: `name@digest` where it is published, else its run's folder."""
    if (place / MANIFEST_NAME).is_file():
        return str(origin(place)[1])
    return place.parent.name if place.name == "final" else place.name


def rewards_of(places: Sequence[Path]) -> RewardFunction | dict[str, RewardFunction] | None:
    """One reward model, several by name, or none."""
    if len(places) == 1:
        return load_reward(places[0])
    return {name_of(place).partition("@")[0]: load_reward(place) for place in places} or None


def add_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server that judges")
    parser.add_argument("--judge-model", metavar="NAME", help="its model")
    parser.add_argument("--judge-key-env", metavar="VARIABLE", help="the environment variable with its key")
    parser.add_argument("--judge-rules", type=Path, metavar="FILE", help="a judge made of rules instead")
    parser.add_argument("--concurrency", type=int, default=8, help="questions to the judge at a time")


@contextmanager
def judge_of(arguments: argparse.Namespace) -> Iterator[OpenJudge]:
    """The judge that the arguments name; raises ConfigError for none or both."""
    given = arguments.judge_url is not None and arguments.judge_model is not None
    if given == (arguments.judge_rules is not None):
        raise ConfigError("give --judge-url and --judge-model, or --judge-rules FILE")
    if not given:
        with open_judge(RulesSource(rules=arguments.judge_rules)) as judge:
            yield judge
        return
    try:
        config = JudgeConfig(
            base_url=arguments.judge_url,
            model=arguments.judge_model,
            api_key_env=arguments.judge_key_env,
            concurrency=arguments.concurrency,
            seed=arguments.seed,
        )
    except ValidationError as error:
        raise ConfigError(f"--judge-url: {error.errors()[0]['msg']}") from error
    with open_judge(config) as judge:
        yield judge


def tell(file: EvaluationFile, out: Path | None) -> None:
    """The table on the terminal, and the file."""
    file.show(Console())
    if out is not None:
        file.write(out)
        print(f"figures written to {out}")
