"""Does an engine apply constraints? A vLLM without the processor ignores them without a word.

So each upstream is asked, before the first reply under constraints and again every few minutes, for a reply
under rules that can't be: the processor refuses them by name, which nothing else does. The question costs no
generation where the processor is there. An upstream that answers it in any other way fails the request.
"""

from __future__ import annotations

import asyncio
import time
from weakref import WeakKeyDictionary

import orjson
import structlog

from policies.constraints import XARG
from service.engine.engine import Engine
from service.engine.errors import UpstreamError, UpstreamStatusError
from service.openai.errors import UpstreamFailed

logger = structlog.get_logger(__name__)

IMPOSSIBLE = '[{"ban":[]}]'
"""Rules that no processor can read."""

TRUSTED_S, PARTLY_S = 300.0, 10.0
"""Seconds until they are asked again: all of them, and where one did not answer."""

REFUSED = f"{XARG}: not a list of constraints"
"""What the processor says of them (`service.alignment.vllm_constraints`)."""


class ConstraintProbes:
    """What is known of each engine."""

    def __init__(self) -> None:
        self._proven: WeakKeyDictionary[Engine, float] = WeakKeyDictionary()
        self._asking: WeakKeyDictionary[Engine, asyncio.Lock] = WeakKeyDictionary()

    async def require(self, engine: Engine, model: str, policy: str) -> None:
        """Return where every upstream that answers applies constraints.

        Raises UpstreamFailed for one that doesn't. Upstreams that can't be reached answer no request either.
        """
        if time.monotonic() < self._proven.get(engine, 0.0):
            return
        async with self._asking.setdefault(engine, asyncio.Lock()):
            if time.monotonic() < self._proven.get(engine, 0.0):
                return
            answers = await engine.ask_each("/v1/chat/completions", _question(model))
            for name, error in answers.items():
                if not _applies(error):
                    logger.error("constraints_not_applied", upstream=name, policy=policy)
                    raise UpstreamFailed(
                        f"the policy {policy!r} has constraints, which its engine does not apply: start vLLM "
                        "with --logits-processors service.alignment.vllm_constraints:Constraints",
                        code="constraints_unsupported",
                    )
            proven = [isinstance(e, UpstreamStatusError) and e.status == 400 for e in answers.values()]
            if any(proven):
                self._proven[engine] = time.monotonic() + (TRUSTED_S if all(proven) else PARTLY_S)


def _question(model: str) -> bytes:
    return orjson.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
            "vllm_xargs": {XARG: IMPOSSIBLE},
        }
    )


def _applies(error: UpstreamError | None) -> bool:
    """Whether that is how an upstream answers that applies constraints, or one that doesn't answer at all."""
    if error is None:
        return False
    if isinstance(error, UpstreamStatusError) and error.status < 500 and error.status != 429:
        return error.status == 400 and REFUSED.encode() in error.body
    return True
