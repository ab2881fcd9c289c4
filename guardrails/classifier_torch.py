"""Larger classifiers, where a user has them: Detoxify's own models and any transformers classifier.

Runs in a guard worker that a policy asks for; torch and transformers are imported when one is made.
Nothing is downloaded, and no pickle is opened whose digest has not been checked: Detoxify's checkpoints
are pickles, and opening one runs what its author put into it.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guardrails.classifier import ClassifierError, Scores, check_sha256, highest, scrubbed, windows

OVERLAP = 32
MAX_TOKENS = 512


class TorchClassifier:
    """A transformers sequence classifier; every window of every text is a forward pass of its own.

    One at a time, without padding: scores must not depend on what else is in a batch, and on a CPU with
    one thread a batch gains little.
    """

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[str], *, exclusive: bool) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._labels = tuple(labels)
        self._activate: Callable[[Any], Any] = (
            (lambda z: z.softmax(-1)) if exclusive else (lambda z: z.sigmoid())
        )
        positions = getattr(model.config, "max_position_embeddings", MAX_TOKENS)
        # RoBERTa's positions begin after its padding index, so two of them are lost.
        limit = min(MAX_TOKENS, positions - 2, tokenizer.model_max_length)
        self._before, self._after = _special_tokens(tokenizer)
        self._size = int(limit) - len(self._before) - len(self._after)
        if self._size <= OVERLAP:
            raise ClassifierError(f"a classifier that reads only {limit} tokens at a time is not supported")

    @property
    def labels(self) -> tuple[str, ...]:
        return self._labels

    def predict(self, texts: Sequence[str]) -> list[Scores]:
        return [self._one(scrubbed(text)) for text in texts]

    def _one(self, text: str) -> Scores:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return highest(
            [self._forward(ids[start:end]) for start, end in windows(len(ids), self._size, OVERLAP)]
        )

    def _forward(self, ids: list[int]) -> Scores:
        whole = [*self._before, *ids, *self._after]
        with self._torch.inference_mode():
            logits = self._model(input_ids=self._torch.tensor([whole])).logits[0]
        return dict(zip(self._labels, self._activate(logits).tolist(), strict=True))


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text's own tokens."""
    whole: list[int] = tokenizer("a")["input_ids"]
    own: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(own)] == own)
    return whole[:at], whole[at + len(own) :]


def load_transformers(folder: Path) -> TorchClassifier:
    """An `AutoModelForSequenceClassification` folder; labels and kind are those of its `config.json`.

    Raises ClassifierError for a folder that is incomplete or has no safetensors weights.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ClassifierError(f"{folder}: has no config.json; give the folder that save_pretrained() wrote")
    if not list(folder.glob("*.safetensors")):
        raise ClassifierError(f"{folder}: has no safetensors weights; other formats are not opened")
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ClassifierError(f"{folder}: transformers can't load it: {error}") from error
    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    exclusive = model.config.problem_type != "multi_label_classification" and len(labels) > 1
    return TorchClassifier(model, tokenizer, labels, exclusive=exclusive)


def load_detoxify(name: str) -> TorchClassifier:
    """Detoxify's `original`, `unbiased` or `multilingual`, from torch's and transformers' local caches.

    The file's name ends in the first digits of its sha256 (torch.hub's convention), which must be right.
    """
    import torch

    _stay_offline()
    from detoxify.detoxify import MODEL_URLS

    if name not in MODEL_URLS:
        raise ClassifierError(f"Detoxify has no model {name!r}; it has {', '.join(MODEL_URLS)}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / MODEL_URLS[name].rsplit("/", 1)[1]
    if not path.is_file():
        raise ClassifierError(
            f"Detoxify's {name!r} is not at {path}, and nothing is downloaded at run time; run "
            f"`python -c \"import detoxify; detoxify.Detoxify('{name}')\"` once where there is a network"
        )
    digits = re.search(r"-([0-9a-f]{8,64})\.ckpt$", path.name)
    return _detoxify(path, digits[1] if digits else "")


def load_detoxify_file(path: Path, sha256: str) -> TorchClassifier:
    """A checkpoint in Detoxify's format. Raises ClassifierError, the file unopened, if its digest is another.

    Its encoder's configuration and tokenizer come from the checkpoint's own folder if `config.json` is
    there, else from the local cache under the name that the checkpoint gives.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ClassifierError(f"{path}: its sha256 must be given in full, as 64 hexadecimal digits")
    return _detoxify(path, sha256)


def _detoxify(path: Path, sha256: str) -> TorchClassifier:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClassifierError(f"{path}: cannot be read: {error.strerror}") from error
    check_sha256(data, sha256, path)
    _stay_offline()
    import torch
    from detoxify.detoxify import load_checkpoint

    # What is opened from here on are the bytes that were checked, not the file, which may change.
    folder = path.parent if (path.parent / "config.json").is_file() else None
    if folder is not None:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
        content["config"]["arch"]["args"]["model_type"] = str(folder)
        rewritten = io.BytesIO()
        torch.save(content, rewritten)
        data = rewritten.getvalue()
    try:
        model, tokenizer, labels = load_checkpoint(
            checkpoint=io.BytesIO(data), huggingface_config_path=str(folder) if folder else None
        )
    except (OSError, KeyError, ValueError) as error:
        raise ClassifierError(
            f"{path}: Detoxify can't load it ({type(error).__name__}: {error}); put its encoder's "
            "config.json and tokenizer files beside it, or into transformers' cache"
        ) from error
    return TorchClassifier(model, tokenizer, labels, exclusive=False)


def _stay_offline() -> None:
    """Before transformers is imported: look into the cache, never at a hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
