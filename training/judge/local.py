"""The policy model as its own judge, in this process: read off its next-token probabilities.

    compare   P("A") / (P("A") + P("B")) for the token after the question which reply is better
    critique  P("Yes") / (P("Yes") + P("No")) for each principle; above 1/2 it is violated
    revise    a sampled answer to the principle's revision request

No answer has to be parsed, so none fails. A small model's opinions are close to noise and lean to one
letter; both orders are averaged and the lean is reported (`training.judge.pairwise`). What a model that is
good enough gains by judging itself is shown by Bai et al. 2022 (arXiv:2212.08073) and Yuan et al. 2024
(arXiv:2401.10020). Evidence is not quoted: that would have to be generated.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from policies.constitution import Constitution
from policies.critique import Critique, Violation, revision_requests
from training.data.preferences import Prompt, as_prompt
from training.errors import TrainingError
from training.judge.client import JudgeError, UnreadableAnswer
from training.judge.critique import GENERAL_CRITERION
from training.rl.causal import evaluating
from training.rl.rollout import SampleConfig, generate, prompt_tokens


class PolicyJudge:
    """Judges with `model`, which is not changed. One call at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        sampling: SampleConfig | None = None,
        seed: int = 0,
    ) -> None:
        """Raises TrainingError where two answers begin with the same token, so that none can be told."""
        self._model, self._tokenizer, self._seed = model, tokenizer, seed
        self._sampling = sampling or SampleConfig(max_new_tokens=96)
        self._letters = self._first_tokens("A", "B")
        self._answers = self._first_tokens("Yes", "No")

    def compare(self, prompt: Prompt, a: str, b: str, criterion: str | None = None) -> float:
        """See `Judge.compare`. Raises JudgeError for replies that don't fit the model's context."""
        case = f"{_told(prompt)}\nReply A: {a}\nReply B: {b}"
        question = f"{case}\n\n{criterion or GENERAL_CRITERION} Answer with A or B."
        return self._first_of(question, self._letters)

    def critique(self, prompt: Prompt, reply: str, constitution: Constitution) -> Critique:
        """See `Judge.critique`; the severities are the principles' own."""
        violated = []
        for principle in constitution.principles:
            question = (
                f"{_told(prompt)}\nReply: {reply}\n\n{principle.critique_request} Answer with Yes or No."
            )
            if self._first_of(question, self._answers) > 0.5:
                violated.append(Violation(principle.id, "", principle.severity))
        return Critique(tuple(violated))

    def revise(self, prompt: Prompt, reply: str, constitution: Constitution, critique: Critique) -> str:
        """See `Judge.revise`."""
        requests = revision_requests(constitution, critique)
        question = f"{_told(prompt)}\nReply: {reply}\n\n{requests}\nWrite only the new reply."
        self._seed += 1
        try:
            text = generate(
                self._model, self._tokenizer, [as_prompt(question)], self._sampling, self._seed
            ).texts[0]
        except TrainingError as error:
            raise JudgeError(str(error)) from error
        if not text.strip():
            raise UnreadableAnswer("the model's revision is empty")
        return text.strip()

    @torch.no_grad()
    def _first_of(self, question: str, pair: tuple[int, int]) -> float:
        """P(first) / (P(first) + P(second)) of the two tokens that may begin the answer."""
        (ids,) = prompt_tokens(self._tokenizer, [as_prompt(question)])
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) > limit:
            raise JudgeError(
                f"the question has {len(ids)} tokens, the model's context {limit}; shorten the replies"
            )
        with evaluating(self._model):
            device = next(self._model.parameters()).device
            logits_V: Tensor = self._model(torch.tensor([ids], device=device), logits_to_keep=1).logits[0, -1]
        return float(torch.softmax(logits_V[list(pair)].float(), dim=0)[0])

    def _first_tokens(self, first: str, second: str) -> tuple[int, int]:
        ids = [self._tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (first, second)]
        if ids[0] == ids[1]:
            raise TrainingError(
                f"the tokenizer begins {first!r} and {second!r} with the same token; use another judge"
            )
        return ids[0], ids[1]


def _told(prompt: Prompt) -> str:
    return "\n".join(f"{message.role.capitalize()}: {message.content}" for message in prompt)
