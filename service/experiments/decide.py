"""What follows from a look: back, on, wait, or nothing. A pure function of what was seen."""

from __future__ import annotations

from policies.experiment import ExperimentSpec
from service.experiments import state as states
from service.experiments.report import Report, tell
from service.experiments.state import LIVE, Event, State

GATEWAY = "gateway"


def decide(spec: ExperimentSpec, state: State, report: Report, now: float) -> tuple[State, Event] | None:
    """The next state and why, None where all stays as it is."""
    if state.status not in LIVE:
        return None
    crossed = [bound for bound in report["limits"] if bound["state"] == "crossed"]
    if crossed:
        event = Event("roll_back", GATEWAY, now, "; ".join(tell(bound) for bound in crossed))
        return states.roll_back(state, spec, event), event
    if spec.ramp is None or state.status != "running" or missing(spec, state, report, now):
        return None
    held = "; ".join(tell(bound) for bound in report["gates"]) or "no limit was crossed"
    if state.step + 1 == len(spec.ramp.steps):
        event = Event("complete", GATEWAY, now, held)
        return states.complete(state, event), event
    coming = spec.ramp.steps[state.step + 1]
    if coming in spec.ramp.approve:
        event = Event("wait", GATEWAY, now, f"{coming:g} % needs approval; {held}")
        return states.wait(state, event), event
    event = Event("advance", GATEWAY, now, held)
    return states.to_step(state, spec, state.step + 1, event), event


def missing(spec: ExperimentSpec, state: State, report: Report, now: float) -> list[str]:
    """What the ramp's next step waits for, in words."""
    if spec.ramp is None or state.status != "running":
        return []
    reasons = []
    arm = next(one for one in report["arms"] if one["name"] == spec.ramp.arm)
    if arm["units"] < spec.ramp.min_units:
        reasons.append(f"units: {arm['units']} of {spec.ramp.min_units}")
    if now - state.since < spec.ramp.min_s:
        reasons.append(f"time: {now - state.since:.0f} of {spec.ramp.min_s:.0f} s")
    if report["mismatch"]["alarm"]:
        reasons.append("units don't come to the arms as planned (sample ratio mismatch)")
    reasons += [
        f"gate {gate['bound']}: {gate['state']}" for gate in report["gates"] if gate["state"] != "within"
    ]
    return reasons
