"""A reward model behind vLLM (`--runner pooling --convert classify`): its raw scores, standardised and mixed.

The server renders and cuts its conversations itself, over `/tokenize`, so that the chat template is the
model's own; all replies are then scored by one `/classify`. `use_activation: false` asks for the raw outputs:
the default is a softmax, which for a single output is always 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from guardrails.reward import Turn
from policies.alignment import RewardServer
from service.alignment.waiting import together
from service.engine.engine import Engine
from service.engine.errors import ProtocolError


class RewardServerClient:
    """One such server."""

    def __init__(self, spec: RewardServer, weights: Mapping[str, float], engine: Engine) -> None:
        self._model = spec.upstream.model
        self._name = spec.upstream.base_url
        self._engine = engine
        self._mean = [spec.mean.get(name, 0.0) for name in spec.objectives]
        chosen = [weights.get(name, 0.0) if weights else 1.0 for name in spec.objectives]
        spread = math.sqrt(sum(weight * weight for weight in chosen))
        deviations = [spec.deviation.get(name, 1.0) for name in spec.objectives]
        self._mixing = [
            weight / spread / deviation for weight, deviation in zip(chosen, deviations, strict=True)
        ]

    async def scores(
        self, conversation: tuple[Turn, ...], replies: Sequence[str], seconds: float
    ) -> list[list[float]]:
        """`[1][N]`. Raises `UpstreamError`."""
        turns = [{"role": role, "content": text} for role, text in conversation]
        ids = await together(*(self._tokenize(turns, reply) for reply in replies))
        answer = await self._ask("/classify", {"model": self._model, "input": ids, "use_activation": False})
        return [[self._mix(raw) for raw in self._raw(answer, len(replies))]]

    async def _tokenize(self, turns: Sequence[dict[str, str]], reply: str) -> list[int]:
        answer = await self._ask(
            "/tokenize",
            {
                "model": self._model,
                "messages": [*turns, {"role": "assistant", "content": reply}],
                "add_generation_prompt": False,
            },
        )
        ids, longest = answer.get("tokens"), answer.get("max_model_len")
        if not isinstance(ids, list) or not ids or not isinstance(longest, int):
            raise self._wrong("/tokenize")
        return ids[-longest:]

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = await self._engine.complete(path, orjson.dumps(body))
        try:
            answer = orjson.loads(reply.body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise self._wrong(path)
        return answer

    def _raw(self, answer: dict[str, Any], count: int) -> list[list[float]]:
        """Each reply's outputs, in the order of the replies."""
        try:
            found = {item["index"]: [float(score) for score in item["probs"]] for item in answer["data"]}
            rows = [found[index] for index in range(count)]
        except (KeyError, TypeError, ValueError):
            raise self._wrong("/classify") from None
        if len(found) != count or any(len(row) != len(self._mixing) for row in rows):
            raise self._wrong("/classify")
        return rows

    def _mix(self, raw: Sequence[float]) -> float:
        return sum(
            weight * (score - mean) for weight, score, mean in zip(self._mixing, raw, self._mean, strict=True)
        )

    def _wrong(self, path: str) -> ProtocolError:
        return ProtocolError(f"answered {path} with something else than scores", upstream=self._name)
