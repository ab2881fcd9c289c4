"""The logits processor that vLLM loads: `--logits-processors service.alignment.vllm_constraints:Constraints`.

It reads a policy's rules from `extra_args` (`vllm_xargs` over HTTP) and changes the logits of those requests
that bring some; others cost a look at an empty table. Rules are compiled once for a text, and what completes
a phrase is remembered by state, so that a token costs a few table lookups.

Where a grammar (structured output) leaves only tokens that a rule forbids, the rule yields for that token:
a choice among nothing would end in noise, and the output guards still stand behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import xgrammar
from vllm import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from policies.constraints import XARG, from_wire
from service.alignment.token_rules import Following, Rules, Vocabulary

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_COMPILED = 64


class _Request:
    """A running request: its rules' reading of the tokens that vLLM appends to `output`."""

    def __init__(self, following: Following, output: Sequence[int]) -> None:
        self.following = following
        self.output = output


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
        self._device = device

    def is_argmax_invariant(self) -> bool:
        """Greedy choices change as well."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._requests, batch_update, self._admit)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, request in self._requests.items():
            request.following.read(request.output)
            self._constrain(logits[row], request.following)
        return logits

    def _constrain(self, row_V: torch.Tensor, following: Following) -> None:
        due = following.forced()
        if due is not None and torch.isfinite(row_V[due]):
            kept = row_V[due].clone()
            row_V.fill_(-torch.inf)
            row_V[due] = kept
            return
        before_V: torch.Tensor | None = None
        for adjustment in following.adjustments():
            if before_V is None:
                before_V = row_V.clone()
            tokens_N = torch.from_numpy(adjustment.tokens).to(self._device)
            row_V.index_add_(0, tokens_N, torch.full_like(tokens_N, 1, dtype=row_V.dtype) * adjustment.amount)
        if before_V is not None and not torch.isfinite(row_V).any():
            row_V.copy_(before_V)

    def _admit(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> _Request | None:
        text = (params.extra_args or {}).get(XARG)
        if not text:
            return None
        room = self._max_len - len(prompt_ids or ())
        limit = min(params.max_tokens, room) if params.max_tokens is not None else room
        return _Request(Following(self._rules(str(text)), list(params.all_stop_token_ids), limit), output_ids)

    def _rules(self, text: str) -> Rules:
        rules = self._compiled.get(text)
        if rules is None:
            rules = self._compiled[text] = Rules(from_wire(text), self._vocabulary)
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(text)
        return rules


def _read_vocabulary(vllm_config: VllmConfig) -> Vocabulary:
    tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
    size = vllm_config.model_config.get_vocab_size()
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    special = {*info.special_token_ids, *tokenizer.all_special_ids}
    tokens = [b"" if number in special else token for number, token in enumerate(info.decoded_vocab)]
    return Vocabulary(tokens, lambda text: list(tokenizer.encode(text, add_special_tokens=False)))
