"""Preferences from an AI judge (RLAIF), and training on them.

For each prompt x two replies are drawn from the policy, y_1, y_2 ~ π(· | x), or read from a file. A judge is
asked which is better, in both orders (`training.judge.pairwise`), and its answer

    p = ½ [ P(y_1 better | shown y_1, y_2) + 1 - P(y_2 better | shown y_2, y_1) ]

is kept as a soft label: a `Preference` whose `soft` is max(p, 1 - p), chosen and rejected accordingly. DPO
and the reward model weigh both outcomes with it. What "better" means is a criterion, or one principle of a
constitution drawn for every pair, as Bai et al. do, so that no single wording decides.

Sources: Lee et al. 2023 (arXiv:2309.00267) for soft AI labels averaged over both orders; Bai et al. 2022
(arXiv:2212.08073), section 4, for principles drawn at random.

Left out: Lee et al.'s "direct" RLAIF, where the judge scores every reply inside the RL loop: a reward model
that was trained on the preferences costs less and can be checked before it is optimised. Chain-of-thought
is the judge's own option (`reasoning`).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policies.constitution import Constitution
from policies.errors import PolicyError
from policies.manifest import DataSource
from training.command import run_command
from training.config import Config
from training.data.preference_data import PromptDataConfig, load_prompts
from training.data.preferences import Preference, Prompt, write_preferences
from training.errors import ConfigError, TrainingError
from training.evaluate.replies import read_replies, write_replies
from training.files import appearing
from training.judge.pairwise import Judgements, Pair, judge_pairs, preferences
from training.judge.source import JudgeSource, OpenJudge, open_judge
from training.methods.dpo import DpoConfig, run_dpo
from training.methods.reward import RewardConfig, run_reward
from training.models import ModelSource, load_policy, tell_origin
from training.provenance import RunRecord
from training.rl.rollout import SampleConfig, generate
from training.run_directory import RunDirectory

PREFERENCES = "preferences.jsonl"
Then = Literal["none", "dpo", "reward"]


class RlaifConfig(Config):
    """`model` draws the replies, judges them where `judge` is `self`, and is what DPO goes on from.

    `least` is the confidence below which a verdict is no preference, `held_out` the share of prompts whose
    preferences are kept for measuring (`data.held_out` is of prompts that are never asked). `then` says what
    is trained on them, with `options`: those of `keel-train dpo` or `keel-train reward`, without name, seed,
    model and data.
    """

    name: str = "rlaif"
    seed: int = 0
    model: ModelSource
    judge: JudgeSource
    data: PromptDataConfig
    replies: str | None = None
    criterion: str | None = None
    constitution: str | None = None
    sample: SampleConfig = SampleConfig()
    least: float = Field(default=0.5, ge=0.5, le=1)
    held_out: float = Field(default=0.1, ge=0, lt=1)
    then: Then = "none"
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> RlaifConfig:
        if self.criterion is not None and self.constitution is not None:
            raise ValueError("give a criterion, or a constitution whose principles are drawn")
        if self.then == "none" and self.options:
            raise ValueError("options are those of what `then` names")
        if self.then != "none":
            next_config(self, self.model, [])  # wrong options are told before anything is sampled
        return self


@dataclass(frozen=True, slots=True)
class AiPreferences:
    """The pairs as they were judged, the judge's verdicts on them, and the preferences that came of it."""

    pairs: tuple[Pair, ...]
    judgements: Judgements
    preferences: tuple[Preference, ...]

    def report(self) -> str:
        """A line for the terminal."""
        return f"{self.judgements.report()}; {len(self.preferences)} preferences"


def collect_preferences(
    prompts: Sequence[Prompt],
    replies: Sequence[tuple[str, str]],
    judge: OpenJudge,
    *,
    criterion: str | None = None,
    constitution: Constitution | None = None,
    least: float = 0.5,
    seed: int = 0,
    keep: Path | None = None,
) -> AiPreferences:
    """Judge two replies to each prompt. Pairs of equal replies are left out.

    Raises TrainingError where no preference comes of it: the judge fails always, or sees no difference.
    """
    chance = random.Random(seed)
    pairs = []
    for number, (prompt, (a, b)) in enumerate(zip(prompts, replies, strict=True)):
        better = _criterion(constitution, chance) if constitution is not None else criterion
        if a.strip() and b.strip() and a.strip() != b.strip():
            pairs.append(Pair(prompt, a, b, better, str(number)))
    judgements = judge_pairs(judge.judge, pairs, judge.workers, keep)
    found = preferences(pairs, judgements, least, rater=judge.name)
    if not found:
        raise TrainingError(
            f"no preference came of {len(prompts)} prompts: {len(pairs)} pairs of different replies, "
            f"{judgements.report()}"
        )
    return AiPreferences(tuple(pairs), judgements, tuple(found))


def sample_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    sample: SampleConfig,
    seed: int,
) -> list[tuple[str, str]]:
    """Two replies to each prompt."""
    texts = generate(
        model, tokenizer, [p for prompt in prompts for p in (prompt, prompt)], sample, seed
    ).texts
    return list(zip(texts[::2], texts[1::2], strict=True))


def next_config(
    config: RlaifConfig, model: ModelSource, data: Sequence[DataSource]
) -> DpoConfig | RewardConfig:
    """What `then` runs, on the run's own preferences; raises ValueError for options that it doesn't have."""
    kind = DpoConfig if config.then == "dpo" else RewardConfig
    origin = f"AI preferences on prompts of: {'; '.join(source.origin for source in data) or 'this run'}"
    licence = ", ".join(sorted({source.licence for source in data})) or "unknown"
    if reserved := {"name", "seed", "model", "data"} & config.options.keys():
        raise ValueError(f"options: {', '.join(sorted(reserved))} are set by the run itself")
    content: dict[str, Any] = {
        **config.options,
        "name": f"{config.name}-{config.then}",
        "seed": config.seed,
        "model": model.model_dump(),
        "data": {
            "held_out": config.held_out,
            "files": [{"path": PREFERENCES, "origin": origin, "licence": licence}],
        },
    }
    return kind.model_validate(content)


def run_rlaif(config: RlaifConfig, data_root: Path, run_path: Path) -> Path:
    """Sample, judge, and train what `then` says. Returns the model's folder, or the file of preferences.

    Replies and verdicts are kept as they come, so an interrupted run asks the judge nothing twice.
    """
    RunDirectory(run_path).bind(config.model_dump(mode="json"))
    constitution = read_constitution(config.constitution) if config.constitution is not None else None
    if config.then != "none":
        tell_origin(config.model)  # what cannot be published is told before anybody is asked
    prompts = load_prompts(config.data, data_root, config.seed)
    model, tokenizer = load_policy(config.model, config.seed)
    if config.replies is not None:
        asked, replies = given_replies(data_root / config.replies)
    else:
        asked, replies = list(prompts.train), _sampled(config, run_path, model, tokenizer, prompts.train)
    with open_judge(config.judge, model, tokenizer, config.seed) as judge:
        found = collect_preferences(
            asked,
            replies,
            judge,
            criterion=config.criterion,
            constitution=constitution,
            least=config.least,
            seed=config.seed,
            keep=run_path / "judgements.jsonl",
        )
    print(found.report())
    write_preferences(run_path / PREFERENCES, found.preferences)
    if config.then == "none":
        return run_path / PREFERENCES
    del model
    return train_next(next_config(config, config.model, prompts.data), config, prompts.data, run_path)


def train_next(
    following: DpoConfig | RewardConfig, config: Config, data: Sequence[DataSource], run_path: Path
) -> Path:
    """Train on the run's preferences, and leave `final/` and a record that names all of it."""
    inner = run_path / following.name
    if isinstance(following, DpoConfig):
        run_dpo(following, run_path, inner)
    else:
        run_reward(following, run_path, inner)
    with appearing(run_path / "final") as place:
        shutil.copytree(inner / "final", place, dirs_exist_ok=True)
    record = RunRecord.read(inner)
    both: dict[str, JsonValue] = {"collect": config.model_dump(mode="json"), "train": record.config}
    method = f"{run_method(config)}+{record.method}"
    record.model_copy(update={"method": method, "config": both, "data": (*data, *record.data)}).write(
        run_path
    )
    return run_path / "final"


def run_method(config: Config) -> str:
    """ "rlaif" for `RlaifConfig`, and so on."""
    return type(config).__name__.removesuffix("Config").lower()


def read_constitution(source: str) -> Constitution:
    """`Constitution.load`, its errors told as a config's."""
    try:
        return Constitution.load(source)
    except PolicyError as error:
        raise ConfigError(str(error)) from error


def given_replies(path: Path) -> tuple[list[Prompt], list[tuple[str, str]]]:
    """The first two replies to each prompt of a file; raises TrainingError where a prompt has fewer."""
    found = read_replies(path)
    if short := next((prompt for prompt, texts in found.items() if len(texts) < 2), None):
        raise TrainingError(
            f"{path}: two replies to each prompt are needed; one has {short[-1].content[:60]!r}"
        )
    return list(found), [(texts[0], texts[1]) for texts in found.values()]


def _sampled(
    config: RlaifConfig,
    run_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
) -> list[tuple[str, str]]:
    """The run's replies, drawn once."""
    place = run_path / "replies.jsonl"
    if not place.is_file():
        drawn = sample_pairs(model, tokenizer, prompts, config.sample, config.seed)
        both = [p for prompt in prompts for p in (prompt, prompt)]
        write_replies(place, both, [text for pair in drawn for text in pair])
    return given_replies(place)[1]


def _criterion(constitution: Constitution, chance: random.Random) -> str:
    principle = chance.choice(constitution.principles)
    return f"Which reply keeps better to this principle? {principle.text}"


def main(argv: Sequence[str]) -> int:
    about = "Preferences from an AI judge, and training on them."
    return run_command("rlaif", about, RlaifConfig, run_rlaif, argv, check)


def check(config: RlaifConfig, data_root: Path) -> str:
    """What `--check` says about the data."""
    if config.constitution is not None:
        read_constitution(config.constitution)
    return "\n".join(load_prompts(config.data, data_root, config.seed).report)
