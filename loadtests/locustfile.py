"""What locust runs: `locust -f loadtests/locustfile.py --headless --host URL --plan 0:1,30:20 --record FILE`.

Classes (Chat, Stream, Feedback…) that are named behind it are the only callers then. Arrivals come
at `--rate` requests a second, and the plan's callers don't count.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from locust import LoadTestShape, events

from loadtests.record import Recorder
from loadtests.shapes import Plan
from loadtests.users import Arrivals, Blocked, Caller, Chat, Feedback, LongContext, Stream

__all__ = ["Arrivals", "Blocked", "Chat", "Feedback", "LongContext", "PlannedShape", "Stream"]


def _options(parser: Any) -> None:
    parser.add_argument("--plan", default="0:1,10:10,30:10", help="SECONDS:CALLERS,…, straight lines between")
    parser.add_argument("--record", default="loadtest.jsonl", help="a line for each request goes here")
    parser.add_argument("--policy", default="standard", help="the model name to ask for")
    parser.add_argument("--think", type=float, default=0.0, help="mean seconds between a caller's requests")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, for Arrivals")
    parser.add_argument("--seed", type=int, default=0, help="of what the callers say")
    parser.add_argument("--key-env", default="", help="the environment variable that holds the API key")


def _begin(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    Caller.model, Caller.think, Caller.seed = options.policy, options.think, options.seed
    Caller.recorder = Recorder(Path(options.record))
    Arrivals.rate = options.rate
    if options.key_env:
        Caller.headers = {"Authorization": f"Bearer {os.environ[options.key_env]}"}
    PlannedShape.plan = Plan.parse(options.plan)
    # A collection stops all callers at once, for 60 ms under a heavy load, and would count as the gateway's
    # time. What is garbage goes with the process.
    gc.disable()


def _end(**_: Any) -> None:
    with contextlib.suppress(AttributeError):
        Caller.recorder.close()


class PlannedShape(LoadTestShape):
    """The plan from the command line."""

    plan: ClassVar[Plan]

    def tick(self) -> tuple[int, float] | None:
        """How many callers there are now, and that they may all come at once."""
        users = self.plan.users(time.perf_counter() - self.start_time)
        return None if users is None else (max(users, 1), 1_000.0)


_events: Any = events  # its hooks have no types
_events.init_command_line_parser.add_listener(_options)
_events.init.add_listener(_begin)
_events.quitting.add_listener(_end)
