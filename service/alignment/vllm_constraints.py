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

import numpy as np
import torch
import xgrammar
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from policies.constraints import XARG, from_wire
from service.alignment.token_rules import Following, Ids, Rules, Vocabulary

if TYPE_CHECKING:
    from vllm.config import VllmConfig

Floats = NDArray[np.float32]
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
        """Add what is due to the batch's logits [B, V], in one operation for all of its requests."""
        rows, tokens, amounts = list[Ids](), list[Ids](), list[Floats]()
        for row, request in self._requests.items():
            following = request.following
            following.read(request.output)
            due = following.forced()
            if due is not None and torch.isfinite(logits[row, due]):
                _leave_only(logits[row], due)
                continue
            for adjustment in following.adjustments():
                count = len(adjustment.tokens)
                rows.append(np.full(count, row))
                tokens.append(adjustment.tokens)
                amounts.append(np.full(count, adjustment.amount, dtype=np.float32))
        if rows:
            self._add(logits, np.concatenate(rows), np.concatenate(tokens), np.concatenate(amounts))
        return logits

    def _add(self, logits: torch.Tensor, rows: Ids, tokens: Ids, amounts: Floats) -> None:
        places = (torch.from_numpy(rows).to(self._device), torch.from_numpy(tokens).to(self._device))
        before_N = logits[places]
        amounts_N = torch.from_numpy(amounts).to(self._device, logits.dtype)
        logits.index_put_(places, amounts_N, accumulate=True)
        banned = np.unique(rows[np.isneginf(amounts)])
        if not len(banned):
            return
        banned_R = torch.from_numpy(banned).to(self._device)
        empty_R = banned_R[logits[banned_R].amax(dim=1).isneginf()]
        if len(empty_R):
            yields_N = torch.isin(places[0], empty_R)
            logits[places[0][yields_N], places[1][yields_N]] = before_N[yields_N]

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
