"""Rollouts: replies sampled from the policy, in this process, with what the policy thought of each token.

One pass over each prompt, then one token a step with a KV cache (`training.rl.decoding`); rows whose reply
has ended leave the batch. `logprobs_BT` are log π_T of the sampled tokens at the sampling temperature T, from
the very logits that were sampled from (`training.rl.sampling`), so PPO needs no second pass for its old
log-probabilities, and a `readout` of the hidden states (the value head) comes with them for free.

A reply's length counts its end-of-text token. Everything is masked by length, never by token id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from training.data.preferences import Prompt
from training.errors import TrainingError
from training.rl.causal import CausalParts, evaluating
from training.rl.decoding import decoder_for
from training.rl.processes import ALONE, Processes
from training.rl.sampling import SampleConfig, draw

__all__ = ["Rollouts", "SampleConfig", "generate", "prompt_tokens"]

Readout = Callable[[Tensor], Tensor]  # hidden_BD -> [B]

# Copying the cache without its finished rows pays once they are this share of the batch.
_COMPACT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Rollouts:
    """B replies of at most T tokens, padded on the right with zeros.

    prompt_ids: each prompt as the chat template renders it, with the generation prompt.
    logprobs_BT: log π_T of each token, float32, 0 beyond the length.
    ended_B: whether the reply ended by itself; the others were cut at `max_new_tokens`.
    readout_BT: what `readout` made of the hidden state that predicted each token; 0 beyond the length.
    weight_version: which weights sampled these; the trainer counts them up at every update.
    """

    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    reply_ids_BT: Tensor
    lengths_B: Tensor
    logprobs_BT: Tensor
    ended_B: Tensor
    texts: tuple[str, ...]
    readout_BT: Tensor | None = None
    weight_version: int = 0

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def mask_BT(self) -> Tensor:
        """True for the tokens of the replies, their end-of-text included."""
        return torch.arange(self.reply_ids_BT.shape[1]) < self.lengths_B[:, None]

    @property
    def tokens(self) -> int:
        """How many tokens were sampled."""
        return int(self.lengths_B.sum())

    def reply_ids(self, row: int) -> list[int]:
        """One reply without padding."""
        ids: list[int] = self.reply_ids_BT[row, : int(self.lengths_B[row])].tolist()
        return ids


def prompt_tokens(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]
) -> tuple[tuple[int, ...], ...]:
    """Prompts as token ids, each ready for the assistant's words; what vLLM renders for the same messages."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in prompt],
            tokenize=False,
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    if not texts:
        return ()
    return tuple(tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    config: SampleConfig,
    generator: torch.Generator | int = 0,
    *,
    readout: Readout | None = None,
    weight_version: int = 0,
    dtype: torch.dtype | None = None,
    processes: Processes = ALONE,
) -> Rollouts:
    """Sample one reply a prompt (repeat a prompt for several); dropout is off while it runs.

    `generator` is a CPU generator or a seed. `dtype` bfloat16 decodes in half the time on CPUs that have
    it, with log-probabilities that are a hundredth of a nat off. Several `processes` decode a share each, and
    all return all replies. Raises TrainingError for a prompt that leaves no room for `max_new_tokens` in the
    model's context.
    """
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    prompt_ids = prompt_tokens(tokenizer, prompts)
    parts = CausalParts(model)
    check_room(prompt_ids, config, parts.context)
    count, limit = len(prompt_ids), config.max_new_tokens
    uniforms_BT = torch.rand(count, limit, dtype=torch.float64, generator=generator)
    out = _Buffers.empty(count, limit, with_readout=readout is not None)
    stops = torch.tensor(sorted(stop_ids(parts.causal, tokenizer)))
    with evaluating(model):
        own = processes.share(range(count))
        for first in range(0, len(own), config.rows):
            part = own[first : first + config.rows]
            rows = slice(part[0], part[-1] + 1)
            _decode(parts, prompt_ids[rows], uniforms_BT[rows], config, stops, readout, out.rows(rows), dtype)
    processes.add_up(*out.tensors)
    longest = int(out.lengths_B.max()) if count else 0
    replies = [out.ids_BT[row, : out.lengths_B[row]].tolist() for row in range(count)]
    return Rollouts(
        prompts=tuple(prompts),
        prompt_ids=prompt_ids,
        reply_ids_BT=out.ids_BT[:, :longest],
        lengths_B=out.lengths_B,
        logprobs_BT=out.logprobs_BT[:, :longest],
        ended_B=out.ended_B,
        texts=tuple(tokenizer.batch_decode(replies, skip_special_tokens=True)),
        readout_BT=None if out.readout_BT is None else out.readout_BT[:, :longest],
        weight_version=weight_version,
    )


def stop_ids(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The ids that end a reply: the tokenizer's end of text, and those of the model's generation config."""
    settings = getattr(model, "generation_config", None)
    more = getattr(settings, "eos_token_id", None)
    ids = {int(tokenizer.eos_token_id)} if tokenizer.eos_token_id is not None else set()
    return ids | ({int(more)} if isinstance(more, int) else {int(i) for i in more or ()})


def check_room(prompt_ids: Sequence[Sequence[int]], config: SampleConfig, context: int | None) -> None:
    """Refuse prompts that are empty or too long for the context together with a full reply."""
    for number, ids in enumerate(prompt_ids):
        if not ids:
            raise TrainingError(f"prompt {number} renders to no tokens at all")
        if context is not None and len(ids) + config.max_new_tokens > context:
            raise TrainingError(
                f"prompt {number} has {len(ids)} tokens; with max_new_tokens {config.max_new_tokens} that is "
                f"more than the model's {context} positions. Shorten the prompt or lower max_new_tokens"
            )


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What decoding fills in, row by row."""

    ids_BT: Tensor
    lengths_B: Tensor
    logprobs_BT: Tensor
    ended_B: Tensor
    readout_BT: Tensor | None

    @classmethod
    def empty(cls, rows: int, limit: int, *, with_readout: bool) -> _Buffers:
        return cls(
            torch.zeros(rows, limit, dtype=torch.long),
            torch.zeros(rows, dtype=torch.long),
            torch.zeros(rows, limit),
            torch.zeros(rows, dtype=torch.bool),
            torch.zeros(rows, limit) if with_readout else None,
        )

    @property
    def tensors(self) -> list[Tensor]:
        found = [self.ids_BT, self.lengths_B, self.logprobs_BT, self.ended_B]
        return found if self.readout_BT is None else [*found, self.readout_BT]

    def rows(self, chosen: slice) -> _Buffers:
        """A view of some rows: what is written there is written here."""
        return _Buffers(
            self.ids_BT[chosen],
            self.lengths_B[chosen],
            self.logprobs_BT[chosen],
            self.ended_B[chosen],
            None if self.readout_BT is None else self.readout_BT[chosen],
        )


def _decode(
    parts: CausalParts,
    prompts: Sequence[Sequence[int]],
    uniforms_BT: Tensor,
    config: SampleConfig,
    stops: Tensor,
    readout: Readout | None,
    out: _Buffers,
    dtype: torch.dtype | None,
) -> None:
    """Decode one batch to its end. `row_K` says which row of the batch each row of the decoder is."""
    decoder = decoder_for(parts, dtype)
    half = torch.autocast(parts.causal.device.type, dtype, enabled=dtype is not None)
    hidden_KD = decoder.prefill(prompts, max(map(len, prompts)) + config.max_new_tokens)
    row_K = torch.arange(len(prompts))
    for step in range(config.max_new_tokens):
        with half:
            logits_KV = parts.unembed(hidden_KD)
        drawn = draw(logits_KV, uniforms_BT[row_K, step].to(logits_KV.device), config)
        # A finished row that has not been dropped yet writes nothing.
        live_K = ~out.ended_B[row_K]
        rows = row_K[live_K]
        tokens_K = drawn.tokens_B.cpu()
        out.ids_BT[rows, step] = tokens_K[live_K]
        out.logprobs_BT[rows, step] = drawn.logprobs_B.cpu()[live_K]
        if readout is not None and out.readout_BT is not None:
            out.readout_BT[rows, step] = readout(hidden_KD).float().cpu()[live_K]
        out.lengths_B[rows] = step + 1
        out.ended_B[rows] = torch.isin(tokens_K[live_K], stops)
        keep_K = ~out.ended_B[row_K]
        living = int(keep_K.sum())
        if living == 0 or step + 1 == config.max_new_tokens:
            return
        tokens_K = drawn.tokens_B
        if len(row_K) - living > _COMPACT_SHARE * len(row_K):
            chosen = keep_K.nonzero().squeeze(1)
            decoder.keep(chosen.to(hidden_KD.device))
            row_K, tokens_K = row_K[chosen], tokens_K[chosen.to(tokens_K.device)]
        hidden_KD = decoder.step(tokens_K)
