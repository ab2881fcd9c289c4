"""Where guards' jobs run: questions to judges go to their servers over HTTP, all others to the guard workers.

A judge is bounded, watched and measured like any upstream: its engine limits what is in flight and opens its
circuit. An answer that can't be read is an error, as is none in time; what follows is the guard's `on_error`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import orjson

from guardrails.guard import JobError, Reason
from guardrails.judging import Question, Scores
from guardrails.runtime import Runtime
from policies.base import Upstream
from policies.critique import Nonsense
from service.alignment.strategy import parse
from service.engine.engine import Engine
from service.engine.errors import ConnectError, Overloaded, Refused, UpstreamError, UpstreamTimeout
from service.generation import PATHS
from service.openai.errors import ModelNotFound

if TYPE_CHECKING:  # they know the catalog, which knows this module
    from service.engines import Engines, Target


class Judges:
    """`guardrails.guard.JobRunner` of the gateway."""

    def __init__(self, runtime: Runtime, engines: Engines, target: Callable[[str], Target]) -> None:
        """`target` finds another policy's model, at the time of a request; raises `ModelNotFound`."""
        self._runtime = runtime
        self._engines = engines
        self._target = target
        self._bound: WeakValueDictionary[Upstream, Engine] = WeakValueDictionary()

    def bind(self, upstream: Upstream) -> Engine:
        """The engine of a judge's server. It is asked for as long as somebody holds it, who must start it."""
        engine = self._bound[upstream] = self._engines.server(upstream)
        return engine

    async def run(self, servable: str, payload: Any, timeout: float) -> Any:
        """The servable's result, or the scores that a judge gives. Raises `JobError`."""
        if not isinstance(payload, Question):
            return await self._runtime.run(servable, payload, timeout)
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome = "cancelled"
        try:
            async with asyncio.timeout(timeout):
                scores = await self._ask(payload)
            outcome = "ok"
            return scores
        except TimeoutError:
            outcome = "timeout"
            raise JobError("timeout", f"not answered within {timeout:g} s") from None
        except JobError as error:
            outcome = error.reason
            raise
        finally:
            took = loop.time() - began
            # The caller's own timer may have been a little earlier.
            late = outcome == "cancelled" and took >= 0.99 * timeout
            self._runtime.observer.on_job(servable, "timeout" if late else outcome, took)

    async def _ask(self, question: Question) -> Scores:
        engine, model = self._where(question)
        forms = (question.own_form,) if engine.child is not None else question.forms
        for form in forms:
            body = {"model": model, **question.body, **form}
            try:
                reply = await engine.complete(PATHS["chat"], orjson.dumps(body))
                return question.read(parse(reply.body, reply.upstream))
            except UpstreamError as error:
                raise JobError(_reason(error), type(error).__name__) from error
            except Nonsense:
                continue
        raise JobError("nonsense", "the judge's answer could not be read")

    def _where(self, question: Question) -> tuple[Engine, str]:
        upstream = question.judge.upstream
        if upstream is not None:
            engine = self._bound.get(upstream)
            if engine is None:
                raise JobError("failed", "the judge's server is not in use")
            return engine, upstream.model
        try:
            target = self._target(question.judge.policy or "")
        except ModelNotFound:
            raise JobError("failed", "the judge's policy is not served") from None
        return target.engine, target.model


def _reason(error: UpstreamError) -> Reason:
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    if isinstance(error, Overloaded):
        return "overloaded"
    return "unreachable" if isinstance(error, ConnectError | Refused) else "failed"
