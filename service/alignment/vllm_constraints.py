"""The logits processor that vLLM loads: `--logits-processors service.alignment.vllm_constraints:Constraints`.

It reads a policy's rules from `extra_args` (`vllm_xargs` over HTTP) and changes the logits of those requests
that bring some; others cost a look at an empty table. Rules are compiled once for a text, and what is due is
remembered by state, so that a token costs a lookup; while all replies of a batch stay where they were, so
does what is added.

Where a grammar (structured output) leaves only tokens that a rule forbids, the rule yields for that token:
a choice among nothing would end in noise, and the output guards still stand behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import xgrammar
from vllm import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from policies.constraints import XARG, from_wire
from service.alignment.token_rules import Adjustment, Following, Rules, State, Vocabulary

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_COMPILED = 64


class _Request:
    """A running request: its rules' reading of the tokens that vLLM appends to `output`.

    `narrow`: something else than rules leaves it a part of the vocabulary, all of which they might forbid.
    """

    __slots__ = ("following", "narrow", "output")

    def __init__(self, following: Following, output: Sequence[int], narrow: bool) -> None:
        self.following = following
        self.output = output
        self.narrow = narrow


class _Places(NamedTuple):
    """What is added where: rows, tokens and amounts, each `[N]`; `narrow` are rows that bans might empty."""

    rows_N: torch.Tensor
    tokens_N: torch.Tensor
    amounts_N: torch.Tensor
    narrow: list[int]


class Constraints(LogitsProcessor):
    """Applies `policies.constraints` in vLLM."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse rules that can't be read (vLLM answers 400)."""
        text = (sampling_params.extra_args or {}).get(XARG)
        if text is None:
            return
        try:
            from_wire(str(text))
        except ValueError as error:
            raise ValueError(f"{XARG}: not a list of constraints: {error}") from error

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._vocabulary = _read_vocabulary(vllm_config)
        self._max_len = vllm_config.model_config.max_model_len
        self._compiled: OrderedDict[str, Rules] = OrderedDict()
        self._requests: dict[int, _Request] = {}
        self._last: tuple[list[tuple[int, State]], _Places] | None = None
        self._device = device

    def is_argmax_invariant(self) -> bool:
        """Greedy choices change as well."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._requests, batch_update, self._admit)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Add what is due to the batch's logits [B, V], in one operation for all of its requests."""
        due: list[tuple[int, State]] = []
        moving: list[tuple[int, Adjustment]] = []
        narrow: list[int] = []
        for row, request in self._requests.items():
            following = request.following
            following.read(request.output)
            state = following.state
            if state.silent:
                continue
            if state.missing:
                token = following.forced()
                if token is not None and torch.isfinite(logits[row, token]):
                    _leave_only(logits[row], token)
                    continue
            if request.narrow:
                narrow.append(row)
            if len(state.tokens):
                due.append((row, state))
            if state.fading or state.unsaid:
                moving += [(row, adjustment) for adjustment in following.adjustments()]
        if not due and not moving:
            return logits
        if moving or self._last is None or due != self._last[0] or self._last[1].narrow != narrow:
            self._last = due, self._places(due, moving, narrow, logits.dtype)
        self._add(logits, self._last[1])
        if moving:
            self._last = None
        return logits

    def _places(
        self,
        due: Sequence[tuple[int, State]],
        moving: Sequence[tuple[int, Adjustment]],
        narrow: list[int],
        dtype: torch.dtype,
    ) -> _Places:
        tokens = [*(state.tokens for _, state in due), *(one.tokens for _, one in moving)]
        amounts = [
            *(state.amounts for _, state in due),
            *(np.full(len(one.tokens), one.amount, dtype=np.float32) for _, one in moving),
        ]
        owners = [*(row for row, _ in due), *(row for row, _ in moving)]
        rows = np.repeat(np.array(owners, dtype=np.int64), [len(some) for some in tokens])
        return _Places(
            torch.from_numpy(rows).to(self._device),
            torch.from_numpy(np.concatenate(tokens)).to(self._device),
            torch.from_numpy(np.concatenate(amounts)).to(self._device, dtype),
            narrow,
        )

    def _add(self, logits: torch.Tensor, places: _Places) -> None:
        where = (places.rows_N, places.tokens_N)
        if not places.narrow:
            logits.index_put_(where, places.amounts_N, accumulate=True)
            return
        before_N = logits[where]
        logits.index_put_(where, places.amounts_N, accumulate=True)
        narrow_R = torch.tensor(places.narrow, device=self._device)
        empty_R = narrow_R[logits[narrow_R].amax(dim=1).isneginf()]
        if len(empty_R):
            yields_N = torch.isin(places.rows_N, empty_R)
            logits[places.rows_N[yields_N], places.tokens_N[yields_N]] = before_N[yields_N]

    def _admit(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> _Request | None:
        text = (params.extra_args or {}).get(XARG)
        if not text:
            return None
        room = self._max_len - len(prompt_ids or ())
        limit = min(params.max_tokens, room) if params.max_tokens is not None else room
        following = Following(self._rules(str(text)), list(params.all_stop_token_ids), limit)
        narrow = any(
            getattr(params, name, None) for name in ("structured_outputs", "allowed_token_ids", "logit_bias")
        )
        return _Request(following, output_ids, narrow)

    def _rules(self, text: str) -> Rules:
        rules = self._compiled.get(text)
        if rules is None:
            rules = self._compiled[text] = Rules(from_wire(text), self._vocabulary)
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(text)
        return rules


def _leave_only(row_V: torch.Tensor, token: int) -> None:
    kept = row_V[token].clone()
    row_V.fill_(-torch.inf)
    row_V[token] = kept


def _read_vocabulary(vllm_config: VllmConfig) -> Vocabulary:
    tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
    size = vllm_config.model_config.get_vocab_size()
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    special = {*info.special_token_ids, *tokenizer.all_special_ids}
    tokens = [b"" if number in special else token for number, token in enumerate(info.decoded_vocab)]
    return Vocabulary(tokens, lambda text: list(tokenizer.encode(text, add_special_tokens=False)))
