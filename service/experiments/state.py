"""How an experiment stands, and the steps from one state to the next: pure functions, which the store keeps.

    running ──► waiting (for a person's approval) ──► running … ──► completed
       └───────────┴──────► rolled_back | stopped | promoted        until `ramp` begins anew

Each change of shares begins a new epoch: units count in the epoch in which they came, so that what is
compared was always drawn with the same shares.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from policies.experiment import ExperimentSpec

Status = Literal["running", "waiting", "completed", "promoted", "rolled_back", "stopped"]
LIVE: frozenset[str] = frozenset({"running", "waiting", "completed"})
"""Where the arms get what the file says; elsewhere a person, or a limit, has decided otherwise."""


@dataclass(frozen=True, slots=True)
class State:
    """One experiment. `since`: when its epoch began (seconds since 1970); `version`: of file and policies."""

    name: str
    version: str
    status: Status
    step: int
    epoch: int
    since: float
    shares: dict[str, float]
    reason: str
    unit_key: str
    revision: int

    def row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Event:
    """What changed a state: who did what, when and why."""

    action: str
    actor: str
    at: float
    reason: str

    def row(self) -> dict[str, Any]:
        return asdict(self)


class NotPossible(Exception):
    """What was asked for can't be done in the experiment's state; the message says what can."""


def begin(spec: ExperimentSpec, version: str, unit_key: str, before: State | None, event: Event) -> State:
    """The first step, or the only one."""
    return State(
        name=spec.name,
        version=version,
        status="running",
        step=0,
        epoch=before.epoch + 1 if before else 1,
        since=event.at,
        shares=spec.shares(),
        reason=event.reason,
        unit_key=unit_key,
        revision=before.revision + 1 if before else 1,
    )


def to_step(state: State, spec: ExperimentSpec, step: int, event: Event) -> State:
    """A step of the ramp, from whatever was before. Raises `NotPossible`."""
    if spec.ramp is None:
        raise NotPossible(f"{spec.name!r} has no ramp")
    if not 0 <= step < len(spec.ramp.steps):
        raise NotPossible(f"the ramp has no step {step + 1}; it has {len(spec.ramp.steps)}")
    return _moved(state, "running", spec.shares(step), event, step=step)


def wait(state: State, event: Event) -> State:
    """All is well, and a person has to say so too."""
    return replace(state, status="waiting", reason=event.reason, revision=state.revision + 1)


def complete(state: State, event: Event) -> State:
    """The last step has stood its test."""
    return replace(state, status="completed", reason=event.reason, revision=state.revision + 1)


def approve(state: State, spec: ExperimentSpec, step: int | None, event: Event) -> State:
    """The step that waits begins; with `step` (from 0), only if it is that one. Raises `NotPossible`."""
    if state.status != "waiting":
        raise NotPossible(f"{spec.name!r} is {state.status}: there is nothing to approve")
    if step is not None and step != state.step + 1:
        raise NotPossible(f"step {state.step + 2} of {spec.name!r} waits for approval, not step {step + 1}")
    return to_step(state, spec, state.step + 1, event)


def promote(state: State, spec: ExperimentSpec, arm: str | None, event: Event) -> State:
    """One arm answers everything: the ramp's, or the one that is named. Raises `NotPossible`."""
    chosen = arm or (spec.ramp.arm if spec.ramp else None)
    if chosen is None and len(spec.arms) == 2:
        chosen = spec.arms[1].name
    if chosen is None or spec.arm(chosen) is None:
        names = ", ".join(one.name for one in spec.arms)
        raise NotPossible(f"say which arm is to be promoted: {names}")
    return _moved(state, "promoted", spec.all_to(chosen), event)


def roll_back(state: State, spec: ExperimentSpec, event: Event) -> State:
    """The control answers everything. Raises `NotPossible` where it does already."""
    if state.status == "rolled_back":
        raise NotPossible(f"{spec.name!r} is rolled back already")
    return _moved(state, "rolled_back", spec.all_to(spec.control.name), event)


def stop(state: State, spec: ExperimentSpec, event: Event) -> State:
    """The control answers everything, and the experiment is over. Raises `NotPossible`."""
    if state.status == "stopped":
        raise NotPossible(f"{spec.name!r} is stopped already")
    return _moved(state, "stopped", spec.all_to(spec.control.name), event)


def restart(
    state: State, spec: ExperimentSpec, version: str, unit_key: str, step: int | None, event: Event
) -> State:
    """`ramp`: begin anew, or at a step. Raises `NotPossible`."""
    fresh = begin(spec, version, unit_key, state, event)
    if step is None:
        return fresh
    return replace(to_step(fresh, spec, step, event), epoch=fresh.epoch, revision=fresh.revision)


def _moved(
    state: State, status: Status, shares: dict[str, float], event: Event, *, step: int | None = None
) -> State:
    return replace(
        state,
        status=status,
        step=state.step if step is None else step,
        epoch=state.epoch + 1,
        since=event.at,
        shares=shares,
        reason=event.reason,
        revision=state.revision + 1,
    )
