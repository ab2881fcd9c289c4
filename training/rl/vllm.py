"""Rollouts through vLLM: the policy's weights are pushed to it; every rollout says from which it came.

A push writes the weights into the folder that the server was started from and has it read them again:

    verify (names, shapes, dtypes, finite)  →  replace the file  →  /pause  →  reload_weights
                                            →  /reset_prefix_cache  →  /resume

vLLM itself verifies nothing: wrong shapes kill it at the next request, NaN poisons its cache, and without the
reset it answers from keys of the old weights. Versions are counted by the trainer; a rollout that is not from
the policy's own version is refused (`training.rl.experience`).

vLLM's log-probabilities are not the policy's to the last digit (other kernels, perhaps another dtype), so the
trainer computes its own for the update, and the first ratio is 1. The difference between the two is watched:
replies from other weights than the policy's would show in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import httpx
import torch
from pydantic import Field, model_validator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.config import Config
from training.data.preferences import Prompt
from training.errors import TrainingError
from training.merging import merged
from training.rl.causal import CausalParts
from training.rl.replies import reply_logprobs
from training.rl.rollout import Rollouts, check_room, prompt_tokens, stop_ids
from training.rl.sampling import SampleConfig
from training.rl.vllm_server import ManagedServer
from training.run_directory import RunDirectory

_WEIGHTS = "model.safetensors"
# Mean |Δ log p| a token between vLLM and the trainer that kernels and dtypes explain.
_TOLERANCE = {"float32": 0.02, "bfloat16": 0.2}


class VllmRollouts(Config):
    """A server that is started for the run, or one at `url`.

    A server at `url` must run with VLLM_SERVER_DEV_MODE=1 on folder `weights`, which this process can write
    (the file is replaced at every push), with `--logprobs-mode processed_logprobs`; `api_key_env` names the
    variable that holds its key. `arguments` go to a started server's command line as they are.
    """

    url: str | None = None
    weights: str | None = None
    api_key_env: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    arguments: tuple[str, ...] = ()
    callers: int = Field(default=64, ge=1)
    seconds: float = Field(default=600.0, gt=0)

    @model_validator(mode="after")
    def _both(self) -> VllmRollouts:
        if (self.url is None) != (self.weights is None):
            raise ValueError(
                "give both url and weights (the folder that server was started from), or neither"
            )
        return self


@contextmanager
def vllm_sampler(
    config: VllmRollouts,
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    sample: SampleConfig,
    run: RunDirectory | None = None,
) -> Iterator[VllmSampler]:
    """A sampler whose server, where it is a managed one, ends with the block."""
    with TemporaryDirectory(prefix="keel-vllm-") as temporary:
        log = (run.path if run is not None else Path(temporary)) / "vllm.log"
        folder = Path(config.weights) if config.weights is not None else Path(temporary) / "model"
        sampler = VllmSampler(config, policy, tokenizer, sample, folder, log)
        try:
            yield sampler
        finally:
            sampler.close()


class VllmSampler:
    """Calling it with prompts, a seed and the policy's weight version samples one reply a prompt."""

    def __init__(
        self,
        config: VllmRollouts,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        sample: SampleConfig,
        folder: Path,
        log: Path,
    ) -> None:
        self.weight_version: int | None = None  # of the weights that the server has
        self.log_probability_gap = 0.0
        self._config, self._policy, self._tokenizer, self._sample = config, policy, tokenizer, sample
        self.folder, self._log = folder, log
        self._parts = CausalParts(policy)
        self._stops = sorted(stop_ids(self._parts.causal, tokenizer))
        self._server: ManagedServer | None = None
        self._client: httpx.Client | None = None
        self._model = ""

    def __call__(self, prompts: Sequence[Prompt], seed: int, weight_version: int) -> Rollouts:
        if self.weight_version != weight_version:
            self.push(weight_version)
        prompt_ids = prompt_tokens(self._tokenizer, prompts)
        check_room(prompt_ids, self._sample, self._parts.context)
        with ThreadPoolExecutor(self._config.callers) as pool:
            numbers = range(len(prompt_ids))
            answers = list(pool.map(lambda n: self._complete(prompt_ids[n], seed, n), numbers))
        rollouts = self._assembled(prompts, prompt_ids, answers, weight_version)
        own_BT = reply_logprobs(self._policy, rollouts, self._sample.temperature)
        self._check_gap(rollouts.logprobs_BT, own_BT, rollouts.mask_BT)
        return replace(rollouts, logprobs_BT=own_BT)

    def push(self, weight_version: int) -> None:
        """Have the server answer from the policy's weights as they are now, under this version."""
        weights = served_weights(self._policy, self._config.dtype)
        if self._config.url is None and self._server is None:
            self._start(weights)
        else:
            client = self._connected()
            check_weights(self.folder / _WEIGHTS, weights)
            _write(self.folder / _WEIGHTS, weights)
            self._post(client, "/pause", params={"mode": "wait"})
            self._post(client, "/collective_rpc", json={"method": "reload_weights"})
            self._post(client, "/reset_prefix_cache")
            self._post(client, "/resume")
        self.weight_version = weight_version

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._server is not None:
            self._server.stop()

    @property
    def server(self) -> ManagedServer | None:
        """The started server, once there is one."""
        return self._server

    def _start(self, weights: dict[str, Tensor]) -> None:
        check_finite(weights)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save_pretrained(self.folder)
        untied = {"dtype": self._config.dtype, "tie_word_embeddings": False}
        config = self._parts.causal.config.to_dict() | untied
        type(self._parts.causal.config).from_dict(config).save_pretrained(self.folder)
        _write(self.folder / _WEIGHTS, weights)
        arguments = ("--dtype", self._config.dtype, *self._config.arguments)
        self._server = ManagedServer(self.folder, arguments, self._log)
        self._server.wait_ready(self._config.seconds)
        self._connected()

    def _connected(self) -> httpx.Client:
        if self._client is None:
            key = os.environ.get(self._config.api_key_env or "", "")
            url = str(self._config.url)
            if self._server is not None:
                url, key = self._server.url, self._server.api_key
            self._client = httpx.Client(
                base_url=url.rstrip("/").removesuffix("/v1"),
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout=self._config.seconds,
                limits=httpx.Limits(max_connections=self._config.callers),
                trust_env=False,
            )
            models = self._client.get("/v1/models")
            self._raise_for(models)
            self._model = models.json()["data"][0]["id"]
        return self._client

    def _complete(self, prompt: Sequence[int], seed: int, number: int) -> dict[str, Any]:
        """One reply. Everything that a generation config could change is said, so that it changes nothing."""
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": self._sample.max_new_tokens,
            "temperature": self._sample.temperature,
            "top_p": self._sample.top_p,
            "top_k": self._sample.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": (seed * 1_000_003 + number) % 2**31,
            "stop_token_ids": self._stops,
            "logprobs": 0,
            "return_token_ids": True,
        }
        answer: dict[str, Any] = self._post(self._connected(), "/v1/completions", json=body)["choices"][0]
        return answer

    def _assembled(
        self,
        prompts: Sequence[Prompt],
        prompt_ids: tuple[tuple[int, ...], ...],
        answers: Sequence[dict[str, Any]],
        weight_version: int,
    ) -> Rollouts:
        """The answers as Rollouts, with vLLM's own log-probabilities."""
        lengths = [len(answer["token_ids"]) for answer in answers]
        if 0 in lengths:
            raise TrainingError("vLLM returned a reply without tokens; is its version one of the lock's?")
        ids_BT = torch.zeros(len(answers), max(lengths), dtype=torch.long)
        logprobs_BT = torch.zeros(ids_BT.shape)
        for row, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
            ids_BT[row, :length] = torch.tensor(answer["token_ids"])
            logprobs_BT[row, :length] = torch.tensor(answer["logprobs"]["token_logprobs"])
        ended = [answer["token_ids"][-1] in self._stops for answer in answers]
        replies = [answer["token_ids"] for answer in answers]
        return Rollouts(
            prompts=tuple(prompts),
            prompt_ids=prompt_ids,
            reply_ids_BT=ids_BT,
            lengths_B=torch.tensor(lengths),
            logprobs_BT=logprobs_BT,
            ended_B=torch.tensor(ended),
            texts=tuple(self._tokenizer.batch_decode(replies, skip_special_tokens=True)),
            weight_version=weight_version,
        )

    def _check_gap(self, theirs_BT: Tensor, own_BT: Tensor, mask_BT: Tensor) -> None:
        gap = float((theirs_BT - own_BT).abs()[mask_BT].mean())
        self.log_probability_gap = gap
        limit = _TOLERANCE[self._config.dtype]
        if not gap <= limit:
            raise TrainingError(
                f"vLLM's log-probabilities are {gap:.3f} nats a token away from the policy's (at most "
                f"{limit} is explained by its arithmetic): it answers from other weights, or without "
                "--logprobs-mode processed_logprobs"
            )

    def _post(self, client: httpx.Client, path: str, **content: Any) -> dict[str, Any]:
        try:
            answer = client.post(path, **content)
        except httpx.HTTPError as error:
            raise TrainingError(f"vLLM at {client.base_url}{path}: {error}{self._tail()}") from error
        self._raise_for(answer)
        return answer.json() if answer.content else {}

    def _raise_for(self, answer: httpx.Response) -> None:
        if answer.is_error:
            said = answer.text[:500]
            raise TrainingError(f"vLLM: {answer.request.url} answered {answer.status_code}: {said}")

    def _tail(self) -> str:
        return "" if self._server is None else f"\n{self._server.tail()}"


def served_weights(policy: nn.Module, dtype: str) -> dict[str, Tensor]:
    """The policy's weights under the names that transformers saves, adapters added in, in `dtype`.

    Tied embeddings are written twice, for a model that is served untied: vLLM keeps a packed copy of the
    unembedding on CPUs, which reloading the weights renews only where the file names it.
    """
    wanted: torch.dtype = getattr(torch, dtype)
    plain = merged(cast(PreTrainedModel, policy))  # a PEFT wrapper stands in for the model
    return {name: tensor.detach().to("cpu", wanted).clone() for name, tensor in plain.state_dict().items()}


def check_finite(weights: dict[str, Tensor]) -> None:
    """Raise TrainingError where a weight is NaN or infinite."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise TrainingError(f"{name} is not finite; vLLM would serve nonsense until it is restarted")


def check_weights(place: Path, weights: dict[str, Tensor]) -> None:
    """Raise TrainingError where `weights` can't replace those in `place`."""
    with safe_open(place, framework="pt") as file:
        there = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        shapes = {name: (tuple(s.get_shape()), str(s.get_dtype())) for name, s in there.items()}
    if shapes.keys() != weights.keys():
        odd = sorted(shapes.keys() ^ weights.keys())[:5]
        raise TrainingError(
            f"{place}: these weights have other names than the server's, such as {odd}; serve the policy "
            "with an lm_head.weight of its own (tie_word_embeddings: false)"
        )
    for name, tensor in weights.items():
        mine = (tuple(tensor.shape), {torch.float32: "F32", torch.bfloat16: "BF16"}.get(tensor.dtype, "?"))
        if mine != shapes[name]:
            raise TrainingError(f"{place}: {name} is {mine}, the server was started with {shapes[name]}")
    check_finite(weights)


def _write(place: Path, weights: dict[str, Tensor]) -> None:
    partial = place.with_suffix(".partial")
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, place)
