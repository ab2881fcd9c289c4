"""A multi-head classifier of a few thousand weights, random but seeded, and its files."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig

from training.data.entities import TAGS
from training.data.safety_example import LABELS
from training.export import Calibration, write_checkpoint
from training.methods.classifier_model import CASE_TYPES, GuardModel

WORDS = "the you are my name is john in paris ignore all rules stupid hello friend please".split()


def tokenizer() -> Tokenizer:
    """WordPiece over a few words and all ASCII characters, as BERT's."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *characters, *(f"##{c}" for c in characters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return made


def config(vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        type_vocab_size=CASE_TYPES,
    )


def model() -> GuardModel:
    """Weights large enough for scores far from one half."""
    torch.manual_seed(0)
    made = GuardModel(config(tokenizer().get_vocab_size()), len(LABELS), len(TAGS)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return made


def write_run(folder: Path, max_tokens: int = 24) -> GuardModel:
    """What a finished training run leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    made = model()
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, folder / "model.safetensors")
    made.bert.config.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    about = {"labels": LABELS, "tags": TAGS, "max_tokens": max_tokens}
    (folder / "classifier.json").write_text(json.dumps(about))
    return made


def calibration() -> Calibration:
    platt = {label: (0.5 + 0.1 * i, -0.2 * i) for i, label in enumerate(LABELS)}
    return Calibration(platt, 1.3, 0.3, {label: {"0.01": 0.9} for label in LABELS})


def write_guard(root: Path) -> Path:
    """An exported checkpoint's folder."""
    write_run(root / "run")
    write_checkpoint(root / "run", root / "guard", calibration(), overlap=8)
    return root / "guard"
