"""Supervised fine-tuning through TRL: what is learnt, what is refused, and in which order rows are seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from policies.registry import Registry
from tests.training.tiny import tiny_model, tiny_tokenizer, write_tiny
from training.cli import main
from training.data.conversation import Conversation, Message
from training.data.render import Example
from training.errors import DataError, TrainingError
from training.held_out import score_held_out
from training.methods.sft import SftConfig, build_trainer, render_all, run_sft, train_sft
from training.models import LoraConfig, ModelSource, attach_lora, load_policy, save_policy
from training.provenance import RunRecord
from training.publish import Draft, publish
from training.rl.rollout import SampleConfig, generate
from training.trl.rows import IGNORED, check_packing, labels, to_rows

DIALOGUES = [
    ["Hello!", "Hi, who is there?", "It is Anna.", "Come in, Anna."],
    ["What is two and two?", "It is four."],
    ["Good night.", "Sleep well."],
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def talk(*turns: str, difficulty: float | None = None) -> Conversation:
    messages = tuple(Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))
    return Conversation(messages, difficulty=difficulty)


TALKS = [talk(*turns) for turns in DIALOGUES]


def a_config(place: Path = Path("nowhere"), **changes: object) -> SftConfig:
    fields: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(place / "base"), "origin": "these tests", "licence": "MIT"},
        "data": {
            "held_out": 0.3,
            "sources": [
                {"path": "a.jsonl", "format": "demonstrations"},
                {"path": "b.jsonl", "format": "prompt_completion"},
                {"path": "c.jsonl", "format": "messages"},
            ],
        },
        "steps": 4,
        "batch_size": 4,
        "micro_batch": 4,
        "learning_rate": 0.01,
        "log_every": 2,
        "checkpoint_every": 4,
        "max_length": 96,
        "threads": 1,
    }
    for source in fields["data"]["sources"]:
        source |= {"origin": "these tests", "licence": "MIT"}
    return SftConfig.model_validate(fields | changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and demonstrations in each of the formats that people have them in."""
    folder = tmp_path_factory.mktemp("sft")
    write_tiny(folder / "base")
    rows: dict[str, list[dict[str, object]]] = {
        "a": [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(8)],
        "b": [{"prompt": f"And {n}?", "completion": f"That is {n}."} for n in range(8)],
        "c": [{"messages": c.as_dicts()} for c in TALKS],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


@pytest.mark.parametrize("changes", [{}, {"packing": True}, {"precision": "bf16"}])
def test_it_learns_dialogues_and_says_them_back(changes: dict[str, object]) -> None:
    """Also the end of each reply, which padding by the end-of-text token would hide."""
    tokenizer = tiny_tokenizer()
    config = a_config(steps=120, batch_size=3, micro_batch=3, schedule="constant", **changes)
    if config.packing:
        config = config.model_copy(update={"batch_size": 1, "micro_batch": 1})
    result = train_sft(tiny_model(tokenizer, width=64), tokenizer, config, TALKS)
    assert result.history[0]["loss"] > 1
    assert result.history[-1]["loss"] < 0.1
    prompts = [t.messages[:end] for t in TALKS for end in range(1, len(t.messages), 2)]
    rollouts = generate(result.model, tokenizer, prompts, SampleConfig(max_new_tokens=30, temperature=0))
    assert rollouts.ended_B.all()
    assert list(rollouts.texts) == [
        t.messages[end].content for t in TALKS for end in range(1, len(t.messages), 2)
    ]


def test_a_run_leaves_a_model_with_its_record_which_can_be_published_and_gone_on_from(place: Path) -> None:
    final = run_sft(a_config(place), place, place / "run")
    record = RunRecord.read(place / "run")
    assert (record.method, record.seed, len(record.data)) == ("sft", 0, 3)
    assert [evaluation.metric for evaluation in record.evaluations] == ["perplexity"]
    assert record.first_base is not None
    draft = Draft(name="tiny-1", kind="full", method="sft", config={}, seed=0, code_revision="a")
    published = publish(final, place / "checkpoints", draft)
    onwards = a_config(place, model={"path": str(published.path), "lora": {"rank": 2}}, adapter=True)
    adapter = run_sft(onwards, place, place / "onwards")
    assert (adapter / "adapter_model.safetensors").is_file()
    assert RunRecord.read(place / "onwards").parent == Registry(place / "checkpoints").resolve("tiny-1").ref
    load_policy(ModelSource(path=str(adapter)))


@pytest.mark.parametrize("lora", [False, True])
def test_every_parameter_that_trains_moves(lora: bool) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    if lora:
        model = attach_lora(model, LoraConfig(rank=4), seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_sft(model, tokenizer, a_config(batch_size=3, micro_batch=3), TALKS)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_an_adapter_learns_over_a_base_in_four_bits_which_stays_as_it_is(place: Path) -> None:
    """And what is published answers as what was trained, not as the base in full precision would."""
    source = ModelSource(path=str(place / "base"), lora=LoraConfig(rank=8), quantize="nf4")
    config = a_config(steps=30, batch_size=3, micro_batch=3, learning_rate=0.02)
    model, tokenizer = load_policy(source)
    packed = {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    result = train_sft(model, tokenizer, config, TALKS)
    assert packed
    assert all(torch.equal(p, packed[name]) for name, p in model.named_parameters() if name in packed)
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 0.1
    examples = render_all(TALKS, tokenizer, 96)
    save_policy(place / "from-four", result.model, tokenizer)
    served, _ = load_policy(ModelSource(path=str(place / "from-four")))
    trained = score_held_out(result.model, examples).loss
    assert score_held_out(served, examples).loss == pytest.approx(trained, rel=0.01)


def test_labels_are_the_assistants_words_and_never_a_first_token() -> None:
    tokenizer = tiny_tokenizer()
    (example,) = render_all(TALKS[1:2], tokenizer, 64)
    found = labels(example)
    assert tokenizer.decode([i for i in found if i != IGNORED]) == "It is four.<|end|>"
    assert labels(Example((5, 6), (True, True))) == [IGNORED, 6]


def test_nothing_to_learn_is_an_error_before_training() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(TrainingError, match="no conversation has a supervised token within max_length"):
        train_sft(tiny_model(tokenizer), tokenizer, a_config(max_length=4), TALKS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "", "completion": "x"}', "an empty message"),
        ('{"prompt": "x"}', "missing column 'completion'"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_a_malformed_row_is_told_with_file_and_line(place: Path, line: str, message: str) -> None:
    good = '{"prompt": "a", "completion": "b"}\n'
    (place / "bad.jsonl").write_text(f"{good}{line}\n{good}")
    source = {"path": "bad.jsonl", "format": "prompt_completion", "origin": "x", "licence": "MIT"}
    with pytest.raises(DataError, match=rf"bad\.jsonl:2: {message}"):
        run_sft(a_config(place, data={"sources": [source]}), place, place / "bad")


def test_a_curriculum_shows_short_or_easy_rows_first_and_the_trainer_keeps_to_it() -> None:
    tokenizer = tiny_tokenizer()
    talks = [talk("Who?", "It is " + "very " * n + "late.", difficulty=-n) for n in (3, 0, 5, 1)]
    examples = render_all(talks, tokenizer, 96)
    lengths = [len(row[0]) for row in to_rows(examples, False, 96, "short_first", seed=0)]
    assert lengths == sorted(lengths)
    easy = [len(row[0]) for row in to_rows(examples, False, 96, "easy_first", seed=0)]
    assert easy == sorted(lengths, reverse=True)
    config = a_config(curriculum="short_first", batch_size=1, micro_batch=1)
    loader = build_trainer(tiny_model(tokenizer), tokenizer, config, examples).get_train_dataloader()
    seen = [int(batch["attention_mask"].sum()) for batch in loader]
    assert seen == lengths
    with pytest.raises(TrainingError, match="needs a number in the column `difficulty`"):
        to_rows(render_all(TALKS, tokenizer, 96), False, 96, "easy_first", seed=0)


def test_difficulty_comes_from_the_column_that_the_source_names(place: Path) -> None:
    rows = [{"prompt": f"{n}?", "completion": f"{n}.", "level": 10 - n} for n in range(4)]
    (place / "levels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "levels.jsonl", "format": "prompt_completion", "origin": "x", "licence": "MIT"}
    named = a_config(
        place,
        curriculum="easy_first",
        data={"held_out": 0, "sources": [{**source, "columns": {"difficulty": "level"}}]},
    )
    run_sft(named, place, place / "levels")
    wrong = {**source, "columns": {"difficulty": "prompt"}}
    with pytest.raises(DataError, match=r"levels\.jsonl:1: column 'difficulty' must be a number"):
        run_sft(a_config(place, data={"sources": [wrong]}), place, place / "wrong")


def test_an_architecture_that_lets_packed_examples_see_each_other_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    examples = render_all(TALKS, tokenizer, 96)
    model = tiny_model(tokenizer)
    check_packing(model, examples, 0)
    forward = model.forward
    model.forward = lambda position_ids=None, **inputs: forward(**inputs)  # deaf to restarting positions
    with pytest.raises(TrainingError, match="set packing: false"):
        check_packing(model, examples, 0)


def test_the_command_checks_without_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run.yaml").write_text(a_config(place).to_yaml())
    arguments = ["sft", "--config", str(place / "run.yaml"), "--data", str(place), "--check"]
    assert main([*arguments, "--set", "max_length=48"]) == 0
    printed = capsys.readouterr().out
    assert "max_length: 48" in printed
    assert "c.jsonl: 3 of 3 conversations kept" in printed
    assert main([*arguments, "--set", "max_length=2"]) == 1
    assert "nothing would be learnt" in capsys.readouterr().err


def test_the_example_config_is_valid_and_learns_the_demo_domain(tmp_path: Path) -> None:
    """A few small steps; the whole of it is a matter of minutes."""
    file = Path("training/configs/sft.yaml")
    small = ["data.demo=100", "batch_size=4", "micro_batch=4", "max_length=64", "safety=null", "warmup=0"]
    short = ["steps=10", "log_every=2", "checkpoint_every=10", "evaluate_every=10", *small]
    config = SftConfig.load(file, short)
    run_sft(config, tmp_path, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [record["loss"] for record in records if "loss" in record]
    assert found[-1] < found[0] - 0.5
