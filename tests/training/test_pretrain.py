"""Training from scratch, on a model small enough to train in a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from policies.registry import Registry
from training.chat_model import ModelConfig, new_model, read_model, read_tokenizer
from training.data.conversation import Conversation, Message
from training.data.mixture import MixtureConfig, SourceConfig
from training.data.packing import collate
from training.data.render import Example, render
from training.errors import ConfigError, TrainingError
from training.held_out import HeldOutScore
from training.losses.language_model import next_token_loss, shifted_positions
from training.methods.pretrain import Learner, PretrainConfig, main, train
from training.optimization import OptimizerConfig, ScheduleConfig
from training.provenance import RunRecord
from training.publish import Draft, publish
from training.publish import main as publish_main
from training.run_directory import RunDirectory

SHAPE = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=128,
)
DIALOGUES = [
    ["Hello!", "Hi, who is there?", "It is Anna.", "Come in, Anna."],
    ["What is two and two?", "It is four."],
    ["Good night.", "Sleep well."],
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [json.dumps({"turns": turns}) for turns in DIALOGUES for _ in range(4)]
    (tmp_path / "talk.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def a_config(**changes: object) -> PretrainConfig:
    source = SourceConfig(path="talk.jsonl", format="turns", origin="these tests", licence="MIT")
    fields: dict[str, object] = {
        "name": "tiny",
        "seed": 3,
        "model": SHAPE,
        "data": MixtureConfig(sources=(source,), held_out=0.0),
        "row_length": 64,
        "rows_per_step": 4,
        "micro_batch": 4,
        "steps": 6,
        "optimizer": OptimizerConfig(learning_rate=5e-3),
        "schedule": ScheduleConfig(warmup_steps=2, decay=0.5),
        "threads": 1,
        "log_every": 1,
    }
    return PretrainConfig.model_validate(fields | changes)


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def memorized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memorized")
    rows = [json.dumps({"turns": turns}) for turns in DIALOGUES for _ in range(4)]
    (folder / "talk.jsonl").write_text("\n".join(rows) + "\n")
    config = a_config(steps=150, log_every=10, optimizer=OptimizerConfig(learning_rate=1e-2))
    train(config, folder, folder / "run")
    return folder / "run"


def test_it_learns_a_dialogue_and_says_it_back(memorized: Path) -> None:
    trajectory = losses(memorized)
    assert trajectory[0] > 1
    assert trajectory[-1] < 0.05
    tokenizer, model = read_tokenizer(memorized / "final"), read_model(memorized / "final").eval()
    for turns in DIALOGUES:
        for end in range(1, len(turns), 2):
            roles = ["user", "assistant"] * end
            messages = [{"role": r, "content": t} for r, t in zip(roles, turns[:end], strict=False)]
            prompt = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            output = model.generate(**prompt, max_new_tokens=20, do_sample=False, repetition_penalty=1.0)
            reply = output[0, prompt["input_ids"].shape[1] :].tolist()
            assert reply[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(reply, skip_special_tokens=True) == turns[end]


def test_a_finished_run_has_a_model_that_loads_and_a_record(memorized: Path) -> None:
    weights = load_file(memorized / "final" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    settings = json.loads((memorized / "final" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == read_tokenizer(memorized / "final").eos_token_id
    assert settings["temperature"] == 0.7
    record = RunRecord.read(memorized)
    assert record.method == "pretrain"
    assert record.config["steps"] == 150
    assert [source.origin for source in record.data] == ["these tests"]


def test_every_parameter_moves(data: Path) -> None:
    train(a_config(steps=2), data, data / "run")
    trained = read_model(data / "run" / "final")
    fresh = new_model(SHAPE, read_tokenizer(data / "run" / "final"), seed=3)
    for (name, before), after in zip(fresh.named_parameters(), trained.parameters(), strict=True):
        assert not torch.equal(before.to(torch.bfloat16).float(), after), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(data: Path, optimizer: str) -> None:
    config = a_config(optimizer={"name": optimizer, "learning_rate": 5e-3})
    whole = train(config, data, data / "whole")
    train(config, data, data / "parts", stop_after=2)
    assert not (data / "parts" / "final").exists()
    train(config, data, data / "parts", stop_after=3)
    parts = train(config, data, data / "parts")
    assert losses(data / "parts") == losses(data / "whole")
    ours, theirs = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_damaged_checkpoint_is_not_gone_on_from(data: Path) -> None:
    train(a_config(checkpoint_every=2), data, data / "run", stop_after=4)
    newest = RunDirectory(data / "run").latest()
    assert newest is not None
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    train(a_config(checkpoint_every=2), data, data / "run")
    train(a_config(checkpoint_every=2), data, data / "whole")
    assert losses(data / "run") == losses(data / "whole")


def test_one_batch_of_eight_equals_eight_of_one(data: Path) -> None:
    for name, micro_batch in (("together", 8), ("apart", 1)):
        config = a_config(steps=3, rows_per_step=8, row_length=18, micro_batch=micro_batch)
        train(config, data, data / name)
    assert losses(data / "apart") == pytest.approx(losses(data / "together"), rel=1e-5)


def _examples(tokenizer_place: Path) -> list[Example]:
    tokenizer = read_tokenizer(tokenizer_place)
    return [
        render(
            Conversation(tuple(Message("assistant" if i % 2 else "user", t) for i, t in enumerate(turns))),
            tokenizer,
        )
        for turns in DIALOGUES
    ]


def test_gradients_of_micro_batches_add_up_to_the_batchs(memorized: Path) -> None:
    examples = _examples(memorized / "final")
    model = read_model(memorized / "final")
    count = sum(sum(e.supervised) for e in examples)

    def gradients(batches: list[list[Example]]) -> list[torch.Tensor]:
        learner = Learner(model, a_config())
        model.zero_grad()
        for batch in batches:
            loss, _ = learner.loss(collate([(e,) for e in batch], 64, 0))
            (loss / count).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for ours, theirs in zip(gradients([examples]), gradients([[e] for e in examples]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_packed_examples_have_the_loss_that_they_have_alone(memorized: Path) -> None:
    examples = _examples(memorized / "final")
    learner = Learner(read_model(memorized / "final"), a_config())
    packed, count = learner.loss(collate([tuple(examples)], 128, 0))
    alone = [learner.loss(collate([(example,)], len(example), 0)) for example in examples]
    assert count == sum(n for _, n in alone)
    torch.testing.assert_close(
        packed, sum((loss for loss, _ in alone), torch.zeros(())), rtol=1e-4, atol=1e-4
    )


def test_the_packed_loss_is_that_of_the_plain_causal_model(memorized: Path) -> None:
    example = _examples(memorized / "final")[0]
    model: LlamaForCausalLM = read_model(memorized / "final")
    loss, count = Learner(model, a_config()).loss(collate([(example,)], 64, 0))
    labels = torch.tensor([[i if s else -100 for i, s in zip(example.ids, example.supervised, strict=True)]])
    theirs = model(input_ids=torch.tensor([example.ids]), labels=labels).loss
    torch.testing.assert_close(loss / count, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_continues_from_another_ones_folder(memorized: Path, tmp_path: Path, data: Path) -> None:
    config = a_config(model=None, init=str(memorized / "final"), steps=1)
    train(config, data, tmp_path / "next")
    assert losses(tmp_path / "next")[0] < 0.5
    record = RunRecord.read(tmp_path / "next")
    assert [stage.config["steps"] for stage in record.stages] == [150, 1]


def test_a_run_from_a_published_checkpoint_names_its_parent(
    memorized: Path, tmp_path: Path, data: Path
) -> None:
    draft = Draft(name="tiny-1", kind="full", method="pretrain", config={}, seed=0, code_revision="abc")
    parent = publish(memorized / "final", tmp_path / "checkpoints", draft)
    train(a_config(model=None, init=str(parent.path), steps=1), data, tmp_path / "next")
    record = RunRecord.read(tmp_path / "next")
    assert (record.parent, record.earlier) == (parent.ref, None)
    arguments = [
        "--run",
        str(tmp_path / "next"),
        "--name",
        "tiny-2",
        "--registry",
        str(tmp_path / "checkpoints"),
    ]
    assert publish_main(arguments) == 0
    assert Registry(tmp_path / "checkpoints").resolve("tiny-2").manifest.parent == parent.ref


def test_a_run_directory_belongs_to_one_config(data: Path) -> None:
    train(a_config(), data, data / "run", stop_after=1)
    with pytest.raises(TrainingError, match="another config"):
        train(a_config(seed=4), data, data / "run")


def test_a_run_without_decay_can_be_made_longer(data: Path) -> None:
    constant = ScheduleConfig(warmup_steps=2, decay=0)
    train(a_config(steps=2, schedule=constant), data, data / "run")
    train(a_config(steps=4, schedule=constant), data, data / "run")
    assert len(losses(data / "run")) == 4


def test_a_loss_that_is_not_finite_stops_the_run(memorized: Path) -> None:
    model = read_model(memorized / "final")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    examples = _examples(memorized / "final")
    with pytest.raises(TrainingError, match="not finite"):
        Learner(model, a_config()).step([collate([(examples[0],)], 64, 0)], 1e-3)


def test_a_step_without_supervised_tokens_is_an_error(memorized: Path) -> None:
    batch = collate([(Example((5, 6, 7), (False, False, False)),)], 8, 0)
    with pytest.raises(TrainingError, match="no supervised token"):
        Learner(read_model(memorized / "final"), a_config()).step([batch], 1e-3)


def test_too_little_data_for_a_step_is_an_error(data: Path) -> None:
    with pytest.raises(TrainingError, match="lower rows_per_step"):
        train(a_config(rows_per_step=64, micro_batch=64), data, data / "run")


def test_the_interval_contains_the_figure_and_shrinks_with_the_data() -> None:
    few = HeldOutScore(2.0, ((8.0, 4), (12.0, 6), (4.0, 2), (10.0, 5), (1.0, 2), (5.0, 1)))
    many = HeldOutScore(2.0, few.per_row * 50)
    for score in (few, many):
        low, high = score.perplexity_interval(seed=0)
        assert low < score.perplexity < high
    assert many.perplexity_interval(0)[1] < few.perplexity_interval(0)[1]


def test_loss_positions_are_shifted_by_one_and_stay_in_their_row() -> None:
    supervised = torch.tensor([[False, True, True], [True, False, True]])
    assert shifted_positions(supervised).tolist() == [0, 1, 4]


def test_the_loss_is_the_sum_of_negative_log_probabilities() -> None:
    hidden, table = torch.randn(5, 4), torch.randn(7, 4)
    targets = torch.tensor([0, 6, 3, 3, 1])
    logp = (hidden @ table.T).log_softmax(-1)
    torch.testing.assert_close(next_token_loss(hidden, table, targets), -logp[range(5), targets].sum())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a", "expected a mapping"),
        ("name: x\nsteps: 3\ndata: {}\ninit: a\nlearning: 2", "learning"),
        ("name: x\nsteps: 3\ndata: {}", "either model"),
        ("name: x\nsteps: 3\ndata: {}\ninit: a\nrows_per_step: 3\nmicro_batch: 2", "multiple"),
    ],
)
def test_a_wrong_config_names_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        main(["--config", str(path)])
    assert str(path) in str(caught.value)


def test_check_reads_the_data_and_trains_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = data / "run.yaml"
    config.write_text(json.dumps(a_config().model_dump(mode="json")))
    assert main(["--config", str(config), "--data", str(data), "--check"]) == 0
    assert "12 examples" in capsys.readouterr().out
    assert not (data / "runs").exists()
