"""Constitutional training: a model's replies criticised and revised by principles, and trained on.

Two phases (Bai et al. 2022, arXiv:2212.08073):

SL-CAI. The policy answers prompts, y_0 ~ π(· | x). In each of `rounds` some principles are drawn; the judge
says which of them y_i violates, and rewrites it: y_{i+1} = revise(x, y_i, critique). Fine-tuning on the last
revision, -log π(y_n | x), moves the policy to what it says after second thoughts, without the thoughts.

RL-CAI. The fine-tuned model draws two replies to each prompt, the judge says which keeps better to a drawn
principle (`training.methods.rlaif`), and DPO or a reward model is trained on those preferences.

A reply that the judge finds nothing wrong with stays as it is (`revise: always` rewrites it all the same, as
the paper does). The last revision is examined once more by the whole constitution, and what still violates
it is not trained on. Where the judge gives no usable answer the prompt is left out: silence is no consent.

Left out: the paper mixes in human helpfulness data, which keeps the model from refusing everything; here the
prompts whose first reply was fine play that part. Look at the refusals that `evaluate policy` counts.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policies.constitution import Constitution
from policies.critique import Critique
from policies.manifest import DataSource
from training.command import run_command
from training.config import Config
from training.data.conversation import Conversation, Message
from training.data.preference_data import PromptDataConfig, load_prompts
from training.data.preferences import Prompt, write_rows
from training.errors import TrainingError
from training.evaluate.metrics import share
from training.evaluate.replies import read_replies, write_replies
from training.files import appearing
from training.judge.client import JudgeError
from training.judge.progress import answers
from training.judge.protocol import Judge
from training.judge.source import JudgeSource, OpenJudge, open_judge
from training.methods.rlaif import RlaifConfig, read_constitution, run_rlaif
from training.methods.sft import SftConfig, run_sft
from training.models import ModelSource, load_policy, tell_origin
from training.provenance import RunRecord
from training.rl.rollout import SampleConfig, generate
from training.run_directory import RunDirectory

DEMONSTRATIONS = "revised.jsonl"


class CaiConfig(Config):
    """`principles` are drawn for each round, 0 means all of them. `sft` are the options of `keel-train sft`,
    without name, seed, model and data. `preferences`, where given, adds the second phase: the options of
    `keel-train rlaif` `least`, `held_out`, `then` and `options`."""

    name: str = "cai"
    seed: int = 0
    model: ModelSource
    judge: JudgeSource
    constitution: str
    data: PromptDataConfig
    sample: SampleConfig = SampleConfig()
    rounds: int = Field(default=2, ge=1)
    principles: int = Field(default=1, ge=0)
    revise: Literal["flagged", "always"] = "flagged"
    held_out: float = Field(default=0.05, ge=0, lt=1)
    sft: dict[str, JsonValue]
    preferences: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _check(self) -> CaiConfig:
        sft_config(self, [])  # wrong options are told before anything is sampled
        if self.preferences is not None:
            rlaif_config(self, self.model)
        return self


@dataclass(frozen=True, slots=True)
class Revision:
    """One prompt's way: its replies, first to last, the critique of each but the last, and the whole
    constitution's verdict on the first and on the last."""

    prompt: Prompt
    replies: tuple[str, ...]
    critiques: tuple[Critique, ...]
    before: Critique
    after: Critique

    @property
    def kept(self) -> bool:
        """Whether the last reply is fit to be trained on."""
        return not self.after.flagged


@dataclass(frozen=True, slots=True)
class Revisions:
    """Every prompt's revision, or the judge's error in its place."""

    rows: tuple[Revision | JudgeError, ...]

    @property
    def given(self) -> tuple[Revision, ...]:
        return tuple(row for row in self.rows if isinstance(row, Revision))

    @property
    def kept(self) -> tuple[Revision, ...]:
        return tuple(row for row in self.given if row.kept)

    def demonstrations(self) -> list[Conversation]:
        """What SFT is given."""
        return [Conversation((*r.prompt, Message("assistant", r.replies[-1]))) for r in self.kept]

    def report(self) -> str:
        """What came of it; raises TrainingError where there is nothing to train on."""
        if not self.given:
            raise TrainingError(f"the judge gave no usable answer on any prompt: {self.rows[0]}")
        if not self.kept:
            raise TrainingError(
                "every revision still violates the constitution; use a better judge, or more rounds"
            )
        before, after = (share([critique.flagged for critique in side]) for side in self._sides())
        changed = share([row.replies[0] != row.replies[-1] for row in self.given])
        failed = len(self.rows) - len(self.given)
        return (
            f"violations before {before.percent()}, after {after.percent()}; {changed.percent()} rewritten; "
            f"{len(self.kept)} of {len(self.rows)} prompts kept, {failed} without a usable answer"
        )

    def _sides(self) -> tuple[list[Critique], list[Critique]]:
        return [row.before for row in self.given], [row.after for row in self.given]


def revise_replies(
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    judge: OpenJudge,
    constitution: Constitution,
    *,
    rounds: int = 2,
    principles: int = 1,
    always: bool = False,
    seed: int = 0,
    keep: Path | None = None,
) -> Revisions:
    """Critique and revise each reply; `keep` is a file for what an interrupted call has had."""
    chance = random.Random(seed)
    cases = [
        (prompt, reply, list(_drawn(constitution, principles, rounds, chance)))
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    rows = answers(
        cases,
        lambda case: _revised(*case, judge.judge, constitution, always),
        judge.workers,
        keep,
        "revising",
    )
    return Revisions(
        tuple(
            row if isinstance(row, JudgeError) else _revision(prompt, row)
            for prompt, row in zip(prompts, rows, strict=True)
        )
    )


def run_cai(config: CaiConfig, data_root: Path, run_path: Path) -> Path:
    """Both phases; replies and judgements are kept as they come, and interrupted training goes on.

    Leaves `sft/` (and `rlaif/`) below the run, and the last model in `final/`, which is returned.
    """
    RunDirectory(run_path).bind(config.model_dump(mode="json"))
    constitution = read_constitution(config.constitution)
    tell_origin(config.model)  # what cannot be published is told before anybody is asked
    prompts = load_prompts(config.data, data_root, config.seed)
    model, tokenizer = load_policy(config.model, config.seed)
    replies = _sampled(config, run_path, model, tokenizer, prompts.train)
    with open_judge(config.judge, model, tokenizer, config.seed) as judge:
        revisions = revise_replies(
            prompts.train,
            replies,
            judge,
            constitution,
            rounds=config.rounds,
            principles=config.principles,
            always=config.revise == "always",
            seed=config.seed,
            keep=run_path / "revisions.jsonl",
        )
    print(revisions.report())
    write_rows(run_path / DEMONSTRATIONS, ({"messages": c.as_dicts()} for c in revisions.demonstrations()))
    del model
    run_sft(sft_config(config, prompts.data), run_path, run_path / "sft")
    last = run_path / "sft"
    if config.preferences is not None:
        last = run_path / "rlaif"
        tuned = ModelSource(path=str(run_path / "sft" / "final"))
        if run_rlaif(rlaif_config(config, tuned), data_root, last).name != "final":
            last = run_path / "sft"  # preferences alone were asked for: the model is the fine-tuned one
    return _finish(config, prompts.data, last, run_path)


def sft_config(config: CaiConfig, data: Sequence[DataSource]) -> SftConfig:
    """The first phase's training; raises ValueError for options that SFT doesn't have."""
    if reserved := {"name", "seed", "model", "data"} & config.sft.keys():
        raise ValueError(f"sft: {', '.join(sorted(reserved))} are set by the run itself")
    origin = f"replies revised by constitution {config.constitution}, to prompts of: "
    source = {
        "path": DEMONSTRATIONS,
        "format": "messages",
        "origin": origin + ("; ".join(source.origin for source in data) or "this run"),
        "licence": ", ".join(sorted({source.licence for source in data})) or "unknown",
    }
    content: dict[str, Any] = {
        **config.sft,
        "name": f"{config.name}-sft",
        "seed": config.seed,
        "model": config.model.model_dump(),
        "data": {"sources": [source], "held_out": config.held_out},
    }
    return SftConfig.model_validate(content)


def rlaif_config(config: CaiConfig, model: ModelSource) -> RlaifConfig:
    """The second phase, from the first one's model, judged by the same judge and constitution."""
    if config.preferences is None:
        raise ValueError("preferences: the config asks for no second phase")
    if odd := config.preferences.keys() - {"least", "held_out", "then", "options"}:
        raise ValueError(
            f"preferences: no option {', '.join(sorted(odd))}; there are least, held_out, then, options"
        )
    content: dict[str, Any] = {
        **config.preferences,
        "name": f"{config.name}-rlaif",
        "seed": config.seed + 1,
        "model": model.model_dump(),
        "judge": config.judge if isinstance(config.judge, str) else config.judge.model_dump(),
        "data": config.data.model_dump(),
        "constitution": config.constitution,
        "sample": config.sample.model_dump(),
    }
    return RlaifConfig.model_validate(content)


def _drawn(
    constitution: Constitution, principles: int, rounds: int, chance: random.Random
) -> Iterator[Constitution]:
    """The constitution of each round."""
    for _ in range(rounds):
        few = 0 < principles < len(constitution.principles)
        yield constitution.only(chance.sample(constitution.ids, principles)) if few else constitution


def _revised(
    prompt: Prompt, reply: str, drawn: Sequence[Constitution], judge: Judge, whole: Constitution, always: bool
) -> dict[str, Any]:
    """One prompt's revision as the JSON row that is kept."""
    if not reply.strip():
        raise JudgeError("the policy's reply is empty")
    before = judge.critique(prompt, reply, whole)
    replies, critiques = [reply], []
    for constitution in drawn:
        critique = judge.critique(prompt, replies[-1], constitution)
        critiques.append(critique)
        if critique.flagged or always:
            replies.append(judge.revise(prompt, replies[-1], constitution, critique))
    after = judge.critique(prompt, replies[-1], whole)
    rows = [critique.row() for critique in critiques]
    return {"replies": replies, "critiques": rows, "before": before.row(), "after": after.row()}


def _revision(prompt: Prompt, row: dict[str, Any]) -> Revision:
    critiques = tuple(map(Critique.of, row["critiques"]))
    return Revision(
        prompt, tuple(row["replies"]), critiques, Critique.of(row["before"]), Critique.of(row["after"])
    )


def _sampled(
    config: CaiConfig,
    run_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
) -> list[str]:
    """The run's first replies, drawn once."""
    place = run_path / "replies.jsonl"
    if not place.is_file():
        write_replies(place, prompts, generate(model, tokenizer, prompts, config.sample, config.seed).texts)
    found = read_replies(place)
    return [found[prompt][0] for prompt in prompts]


def _finish(config: CaiConfig, data: Sequence[DataSource], last: Path, run_path: Path) -> Path:
    """The last phase's model as the run's, with a record of every phase."""
    with appearing(run_path / "final") as place:
        shutil.copytree(last / "final", place, dirs_exist_ok=True)
    record = RunRecord.read(last)
    both: dict[str, JsonValue] = {"cai": config.model_dump(mode="json"), "train": record.config}
    record.model_copy(update={"method": "cai", "config": both, "data": (*data, *record.data)}).write(run_path)
    return run_path / "final"


def check(config: CaiConfig, data_root: Path) -> str:
    """What `--check` says: the constitution's principles and the prompts."""
    constitution = read_constitution(config.constitution)
    report = load_prompts(config.data, data_root, config.seed).report
    return "\n".join([f"constitution {constitution.name}: {', '.join(constitution.ids)}", *report])


def main(argv: Sequence[str]) -> int:
    return run_command("cai", "Constitutional training.", CaiConfig, run_cai, argv, check)
