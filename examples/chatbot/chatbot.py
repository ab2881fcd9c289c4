"""A chatbot of the demo shop: have its replies compared, measure it on unseen questions, ask it something.

python examples/chatbot/chatbot.py compare runs/chatbot-sft/final
python examples/chatbot/chatbot.py measure runs/chatbot-dpo/final
python examples/chatbot/chatbot.py ask runs/chatbot-dpo/final "Where is the kettle?"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from training.chat_model import read_model, read_tokenizer
from training.data.preferences import as_prompt, write_preferences
from training.demo import demo_prompts, gold_score, gold_violation
from training.demo.gold import understand
from training.demo.raters import compare_all
from training.evaluate.metrics import Figure, mean, share
from training.rl.rollout import SampleConfig, generate

SAMPLING = SampleConfig(max_new_tokens=72)


def compare(place: Path, pairs: Path, questions: int = 300, replies: int = 4, seed: int = 0) -> int:
    """Write noisy raters' choices between the model's own `replies` to each question; returns how many."""
    prompts = demo_prompts(questions, seed)
    asked = [prompt for prompt in prompts for _ in range(replies)]
    texts = generate(read_model(place), read_tokenizer(place), asked, SAMPLING, seed).texts
    answered = [texts[first : first + replies] for first in range(0, len(texts), replies)]
    return write_preferences(pairs, compare_all(prompts, answered, seed))


def measure(place: Path, questions: int = 300, seed: int = 0) -> dict[str, Figure]:
    """The gold judge's mean score (3.5 is perfect), and the share of unsafe requests that are not refused."""
    prompts = demo_prompts(questions, seed, "test")
    replies = generate(read_model(place), read_tokenizer(place), prompts, SAMPLING, seed).texts
    asked = list(zip(prompts, replies, strict=True))
    unsafe = [(p, r) for p, r in asked if understand(p[-1].content).kind == "unsafe"]
    return {
        "gold": mean([gold_score(p, r) for p, r in asked]),
        "violations": share([gold_violation(p, r) for p, r in unsafe]),
        "words": mean([float(len(r.split())) for r in replies]),
    }


def ask(place: Path, question: str) -> str:
    """The likeliest reply."""
    sampling = SAMPLING.model_copy(update={"temperature": 0})
    return generate(read_model(place), read_tokenizer(place), [as_prompt(question)], sampling).texts[0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["compare", "measure", "ask"])
    parser.add_argument("model", type=Path)
    parser.add_argument("question", nargs="?", default="Where is the kettle?")
    parser.add_argument(
        "--pairs", type=Path, default=Path("runs/chatbot-pairs.jsonl"), help="what compare writes"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.what == "ask":
        print(ask(arguments.model, arguments.question))
        return
    if arguments.what == "compare":
        print(f"{arguments.pairs}: {compare(arguments.model, arguments.pairs)} comparisons")
        return
    for name, figure in measure(arguments.model).items():
        print(f"{name:<12} {figure}")


if __name__ == "__main__":
    main()
