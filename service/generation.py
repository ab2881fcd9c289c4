"""One generation request: what it asks for, who answers it, and how its life is recorded.

States: `received → input_checked → generating → releasing → finished | blocked | aborted | failed`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import orjson

from policies.constraints import XARG
from service.http import Call, Header
from service.openai.errors import BadRequest
from service.openai.types import ChatRequest, CompletionRequest
from service.telemetry.metrics import Metrics, child

if TYPE_CHECKING:  # the catalog makes strategies, which know this module
    from service.catalog import Served
    from service.experiments.assignment import Assignment
    from service.outcomes import Tally
    from service.transcript import Transcript

Kind = Literal["chat", "text_completion"]
PATHS: dict[Kind, str] = {"chat": "/v1/chat/completions", "text_completion": "/v1/completions"}
STREAMING = ("stream", "stream_options")
CHECKPOINT = b"x-keel-checkpoint"


@dataclass(slots=True)
class Usage:
    """Tokens, as the engine counted them."""

    input: int = 0
    output: int = 0

    def read(self, usage: Any) -> None:
        """Take over a `usage` object, if it is one."""
        if isinstance(usage, dict):
            self.input = _count(usage.get("prompt_tokens"))
            self.output = _count(usage.get("completion_tokens"))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


@dataclass(slots=True)
class Generation:
    """A request that has been understood. `payload` is the body as it came, and is changed on the way."""

    kind: Kind
    call: Call
    served: Served
    request: ChatRequest | CompletionRequest
    payload: dict[str, Any]
    upstream_headers: dict[str, str]
    usage: Usage = field(default_factory=Usage)
    first_token_at: float | None = None
    tally: Tally | None = None  # None where nobody wants to know the outcome
    assignment: Assignment | None = None  # None where the model is no experiment
    transcript: Transcript | None = None  # None where the policy lets no text be kept
    successor: Callable[[], Awaitable[Served]] | None = None  # None where versions must not mix
    answered: dict[str, None] = field(default_factory=dict)  # the checkpoints so far, where they may

    @property
    def shown(self) -> str:
        """The model's name, as the caller knows it."""
        return self.assignment.experiment if self.assignment else self.served.name

    @property
    def checkpoint(self) -> str:
        """What answered, first where versions mix."""
        return next(iter(self.answered), self.served.target.checkpoint)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        options = self.request.stream_options
        return bool(options and options.include_usage)

    @property
    def choices(self) -> int:
        """How many choices the reply has."""
        prompt = self.payload.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        return (self.request.n or 1) * prompts

    @property
    def path(self) -> str:
        return PATHS[self.kind]

    def whole_request(self) -> dict[str, Any]:
        """What the engine is asked where the whole reply is wanted, whatever the client gets of it.

        A new object, whose fields may be replaced.
        """
        self.payload["model"] = self.served.target.model
        self._constrain()
        return {name: value for name, value in self.payload.items() if name not in STREAMING}

    def upstream_body(self) -> bytes:
        """What the engine is asked: the client's fields, under the engine's name for the model.

        Usage is always asked for, because the token limits and the metrics need it.
        """
        self.payload["model"] = self.served.target.model
        self._constrain()
        if self.call.stream:
            options = self.payload.get("stream_options")
            asked = {**(options or {}), "include_usage": True}
            if self.served.guards.output and self.served.target.engine.child is not None:
                asked["continuous_usage_stats"] = (
                    True  # vLLM's own: a reply that is cut off still has its usage
                )
            self.payload["stream_options"] = asked
        try:
            return orjson.dumps(self.payload)
        except orjson.JSONEncodeError:
            raise BadRequest("the body is nested too deeply", code="invalid_json") from None

    def _constrain(self) -> None:
        """Put the policy's constraints in; what a caller sends under their name is not theirs to say."""
        xargs = self.payload.get("vllm_xargs")
        if isinstance(xargs, dict):
            xargs.pop(XARG, None)
        if self.served.constraints:
            given = xargs if isinstance(xargs, dict) else {}
            self.payload["vllm_xargs"] = {**given, XARG: self.served.constraints}

    def headers(self) -> list[Header]:
        """What the client is told beside the reply."""
        overhead = b"%.2f" % (self.call.overhead() * 1e3)
        arm = self.assignment.headers if self.assignment else ()
        own = self.served.headers
        if self.answered:
            said = ", ".join(self.answered).encode("ascii", "replace")
            own = (*(one for one in own if one[0] != CHECKPOINT), (CHECKPOINT, said))
        return [*own, *arm, (b"x-keel-overhead-ms", overhead)]

    def note_first_token(self) -> None:
        """The first text is going out."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()

    def record(self, metrics: Metrics) -> None:
        """Count it, once it has ended."""
        call, name = self.call, self.served.name
        child(metrics.requests, name, call.state).inc()
        error_type = call.error or ("" if call.state in ("finished", "blocked") else call.state)
        took = time.perf_counter() - call.started
        child(metrics.request_duration, self.kind, name, error_type).observe(took)
        child(metrics.overhead, name).observe(call.overhead())
        if self.first_token_at is not None and call.stream:
            child(metrics.time_to_first_token, self.kind, name).observe(self.first_token_at - call.started)
        if self.usage.input:
            child(metrics.token_usage, self.kind, name, "input").observe(self.usage.input)
        if self.usage.output:
            child(metrics.token_usage, self.kind, name, "output").observe(self.usage.output)
