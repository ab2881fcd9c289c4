"""`keel-train evaluate policy` and `evaluate perplexity`: a checkpoint by itself, and against its parent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from training.data.formats import Format, read_conversations
from training.demo import demo_demonstrations
from training.errors import ConfigError
from training.evaluate.cli_arguments import (
    add_prompts,
    loaded,
    name_of,
    parsed,
    parser_for,
    prompts_of,
    rewards_of,
    tell,
)
from training.evaluate.perplexity import conversations_digest, perplexity
from training.evaluate.policy import evaluate_policy
from training.evaluate.replies import write_replies
from training.evaluate.report import EvaluationFile
from training.evaluate.scorer import Scorer
from training.provenance import folder_digest
from training.rl.rollout import SampleConfig


def policy(argv: Sequence[str]) -> int:
    """Reward, length, diversity, KL and safety of a policy's replies, beside its parent's."""
    parser = parser_for("policy", "Measure a policy's replies.")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a run's final/, or a published checkpoint"
    )
    parser.add_argument("--parent", type=Path, help="measured on the same prompts; also the KL's reference")
    parser.add_argument("--reference", type=Path, help="another reference for the KL")
    parser.add_argument(
        "--reward",
        type=Path,
        action="append",
        default=[],
        help="a reward model; several are named by their folders",
    )
    parser.add_argument("--guard", type=Path, help="a safety classifier, such as checkpoints/keel-guard")
    parser.add_argument("--replies", type=Path, help="also write the replies to this file")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    add_prompts(parser)
    arguments = parsed(parser, argv)
    prompts, rewards = prompts_of(arguments), rewards_of(arguments.reward)
    scorer = Scorer(arguments.guard, arguments.guard / "model.onnx") if arguments.guard is not None else None
    sampling = SampleConfig(max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature)
    where = arguments.reference or arguments.parent
    reference = loaded(where)[0] if where is not None else None
    files: list[EvaluationFile] = []
    for place in filter(None, (arguments.parent, arguments.checkpoint)):
        model, tokenizer = loaded(place)
        report = evaluate_policy(
            model,
            tokenizer,
            prompts,
            rewards,
            reference,
            sampling=sampling,
            seed=arguments.seed,
            scorer=scorer,
        )
        files.append(report.file(name_of(place), files[0] if files else None, folder_digest(place)))
    if arguments.replies is not None:
        write_replies(arguments.replies, report.prompts, report.replies)
    tell(files[-1], arguments.out)
    return 0


def perplexity_of(argv: Sequence[str]) -> int:
    """Perplexity on conversations that the model was not trained on."""
    parser = parser_for("perplexity", "Perplexity on held-out conversations.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--parent", type=Path, help="measured on the same conversations")
    parser.add_argument("--data", type=Path, help="a file of conversations")
    parser.add_argument("--format", choices=get_args(Format), default="messages", help="the file's format")
    parser.add_argument("--demo", type=int, metavar="N", help="N test exchanges of the demo domain instead")
    parser.add_argument("--max-length", type=int, help="in tokens (default: the model's context)")
    arguments = parsed(parser, argv)
    if (arguments.data is None) == (arguments.demo is None):
        raise ConfigError("give --data FILE or --demo N")
    if arguments.demo is not None:
        talk = demo_demonstrations(arguments.demo, arguments.seed, "test")
    else:
        talk = list(read_conversations(arguments.data, arguments.format))
    files: list[EvaluationFile] = []
    for place in filter(None, (arguments.parent, arguments.checkpoint)):
        model, tokenizer = loaded(place)
        report = perplexity(model, tokenizer, talk, max_length=arguments.max_length, seed=arguments.seed)
        files.append(
            EvaluationFile(
                subject=name_of(place),
                weights=folder_digest(place),
                questions=conversations_digest(talk),
                seed=arguments.seed,
                metrics=report.metrics,
                baseline=files[0] if files else None,
            )
        )
    if report.too_long:
        print(f"{report.too_long} of {len(talk)} conversations were too long")
    tell(files[-1], arguments.out)
    return 0
