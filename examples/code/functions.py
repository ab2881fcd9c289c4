"""One-line Python functions: written by a model, judged by tests, and improved with the tests as a reward.

    python examples/code/functions.py data runs/functions-data
    keel-train sft --config examples/code/sft.yaml --data runs/functions-data
    python examples/code/functions.py measure runs/functions/final
    python examples/code/functions.py improve runs/functions/final runs/functions-ppo
    python examples/code/functions.py measure runs/functions-ppo

A quarter of the demonstrations are wrong, so a model that imitates them is wrong about as often. PPO needs no
demonstrations and no reward model here: a reply is worth the share of its tests that pass (reinforcement
learning with verifiable rewards). Replies are never executed: `interpret` reads the few expressions that
such functions need, and everything else fails.
"""

from __future__ import annotations

import argparse
import ast
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.chat_model import SamplingConfig, read_model, read_tokenizer
from training.data.preferences import Prompt, as_prompt, write_rows
from training.evaluate.metrics import Figure, mean
from training.methods.ppo import train_ppo
from training.methods.ppo_config import PpoConfig
from training.models import save_policy
from training.optimization import OptimizerConfig
from training.rl.rollout import SampleConfig, generate

NAMES = ("f", "g", "h", "run", "work", "solve", "compute")
ASKED = {
    "train": ("Write a function {name} that {what}.", "Python function {name} that {what}, please."),
    "test": ("I need a function {name} that {what}.",),
}
NUMBERS, INPUTS = tuple(range(2, 10)), (0, 1, 4, 7, 13)
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
}


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked, a right body, a wrong one, and what the function is to be for each of `INPUTS`."""

    prompt: str
    name: str
    right: str
    wrong: str
    expected: tuple[object, ...]

    def reply(self, body: str) -> str:
        return f"def {self.name}(x):\n    return {body}"


def tasks(count: int, seed: int, split: str = "train") -> Iterator[Task]:
    """`count` tasks, a function of the arguments."""
    chance = random.Random(f"functions/{split}/{seed}")
    for _ in range(count):
        n, m = chance.sample(NUMBERS, 2)
        what, body, wrong = chance.choice(
            (
                (f"adds {n} to x", f"x + {n}", f"x + {m}"),
                (f"subtracts {n} from x", f"x - {n}", f"{n} - x"),
                (f"multiplies x by {n}", f"x * {n}", f"x + {n}"),
                (f"tells whether x is greater than {n}", f"x > {n}", f"x < {n}"),
                (f"tells whether x is less than {n}", f"x < {n}", f"x > {n}"),
                (f"gives the rest of x divided by {n}", f"x % {n}", f"x * {n}"),
                ("squares x", "x * x", "x + x"),
                ("doubles x", "x + x", "x * x"),
                (f"squares x and adds {n}", f"x * x + {n}", f"x + x + {n}"),
            )
        )
        name = chance.choice(NAMES)
        prompt = chance.choice(ASKED[split]).format(name=name, what=what)
        expected = tuple(evaluate(ast.parse(body, mode="eval").body, x) for x in INPUTS)
        yield Task(prompt, name, body, wrong, expected)


def passed(task: Task, reply: str) -> float:
    """The share of the task's tests that the reply passes; 0 for anything but such a function."""
    try:
        results = [interpret(reply, task.name, x) for x in INPUTS]
    except (ValueError, SyntaxError, TypeError, ArithmeticError, RecursionError):
        return 0.0
    pairs = zip(results, task.expected, strict=True)
    return sum(type(a) is type(b) and a == b for a, b in pairs) / len(INPUTS)


def interpret(reply: str, name: str, x: int) -> object:
    """What the function `name` of one argument, which is nothing but a return, gives for `x`."""
    match ast.parse(reply.strip()).body:
        case [
            ast.FunctionDef(name=found, args=ast.arguments(args=[ast.arg(arg="x")]), body=[ast.Return(value)])
        ]:
            if found == name and value is not None:
                return evaluate(value, x)
    raise ValueError("not the function that was asked for")


def evaluate(node: ast.expr, x: int) -> object:
    """An expression of x, whole numbers, + - * % and comparisons; raises ValueError for all else."""
    match node:
        case ast.Name(id="x"):
            return x
        case ast.Constant(value=int(value)) if abs(value) < 1000:
            return value
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](evaluate(left, x), evaluate(right, x))
        case ast.Compare(left, [op], [right]) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](evaluate(left, x), evaluate(right, x))
    raise ValueError(f"not among the expressions that are read: {ast.dump(node)}")


def tests_as_reward(known: Sequence[Task]) -> Callable[[Sequence[Prompt], Sequence[str]], Tensor]:
    """A reward function: the share of tests passed."""
    by_prompt = {task.prompt: task for task in known}

    def reward(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
        asked = zip(prompts, replies, strict=True)
        return torch.tensor([passed(by_prompt[prompt[-1].content], reply) for prompt, reply in asked])

    return reward


def measure(place: Path, count: int = 300, seed: int = 0) -> dict[str, Figure]:
    """Functions that pass all their tests, asked for in words that training did not use."""
    tested = list(tasks(count, seed, "test"))
    prompts = [as_prompt(task.prompt) for task in tested]
    sampling = SampleConfig(max_new_tokens=40)
    replies = generate(read_model(place), read_tokenizer(place), prompts, sampling, seed).texts
    return {"pass all tests": mean([float(passed(t, r) == 1) for t, r in zip(tested, replies, strict=True)])}


def improve(
    start: Path, place: Path, steps: int = 20, rollouts: int = 64, seed: int = 0
) -> list[dict[str, float]]:
    """PPO from `start` with the tests as its reward, written to `place`; returns a record a step."""
    known = list({task.prompt: task for task in tasks(2000, seed)}.values())
    model, tokenizer = read_model(start), read_tokenizer(start)
    config = PpoConfig(
        name="functions-ppo",
        seed=seed,
        steps=steps,
        rollouts=rollouts,
        epochs=1,
        minibatches=2,
        sample=SampleConfig(max_new_tokens=40),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.0),
    )
    prompts = [as_prompt(task.prompt) for task in known]
    result = train_ppo(model, tokenizer, config, prompts, tests_as_reward(known), progress=True)
    save_policy(place, model, tokenizer, SamplingConfig(temperature=1.0, top_p=1.0, repetition_penalty=1.0))
    return result.history


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["data", "measure", "improve"])
    parser.add_argument("place", type=Path)
    parser.add_argument("to", type=Path, nargs="?", default=Path("runs/functions-ppo"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.what == "data":
        arguments.place.mkdir(parents=True, exist_ok=True)
        chance = random.Random("functions/wrong")
        rows = (
            {"prompt": t.prompt, "completion": t.reply(t.wrong if chance.random() < 0.25 else t.right)}
            for t in tasks(2000, 0)
        )
        print(f"{write_rows(arguments.place / 'functions.jsonl', rows)} functions")
    elif arguments.what == "improve":
        improve(arguments.place, arguments.to)
    else:
        for name, figure in measure(arguments.place).items():
            print(f"{name:<16} {figure.percent()}")


if __name__ == "__main__":
    main()
