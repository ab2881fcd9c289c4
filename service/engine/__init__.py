"""The upstream side of the gateway. Everything other packages need is exported here."""

from service.engine.client import Reply, end_to_end
from service.engine.config import PoolLimits, SizeLimits, TimeLimits, UpstreamConfig
from service.engine.engine import Engine
from service.engine.errors import (
    Aborted,
    ConnectError,
    InStreamError,
    Interrupted,
    Overloaded,
    ProtocolError,
    Refused,
    Unavailable,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeout,
)
from service.engine.event_stream import EventStream
from service.engine.observer import EngineObserver, NullObserver
from service.engine.vllm_command import VllmConfig
from service.engine.vllm_process import ManagedVllm, VllmFailed

__all__ = [
    "Aborted",
    "ConnectError",
    "Engine",
    "EngineObserver",
    "EventStream",
    "InStreamError",
    "Interrupted",
    "ManagedVllm",
    "NullObserver",
    "Overloaded",
    "PoolLimits",
    "ProtocolError",
    "Refused",
    "Reply",
    "SizeLimits",
    "TimeLimits",
    "Unavailable",
    "UpstreamConfig",
    "UpstreamError",
    "UpstreamStatusError",
    "UpstreamTimeout",
    "VllmConfig",
    "VllmFailed",
    "end_to_end",
]
