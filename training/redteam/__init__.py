"""Red teaming: attacks on a gateway, a model or any callable, judged, counted and reported.

from training.redteam import CallableTarget, RulesRubric, attacks_for, load_behaviors, red_team

behaviors = load_behaviors(["weapons"])
report = red_team(CallableTarget(my_model), behaviors, strategies=["direct", "role_play"])
print(report.table())
"""

from training.redteam import strategies as _registered
from training.redteam.api import attacks_for, compare, red_team
from training.redteam.attack import STRATEGIES, Attack, Draft, make_attack, strategy
from training.redteam.behavior import Behavior, Pack, load_behaviors, shipped_packs
from training.redteam.campaign import Attempt
from training.redteam.report import Report
from training.redteam.target import CallableTarget, HttpTarget, Reply, TargetError
from training.redteam.verdicts import ClassifierJudge, ModelRubric, RulesRubric

__all__ = [
    "STRATEGIES",
    "Attack",
    "Attempt",
    "Behavior",
    "CallableTarget",
    "ClassifierJudge",
    "Draft",
    "HttpTarget",
    "ModelRubric",
    "Pack",
    "Reply",
    "Report",
    "RulesRubric",
    "TargetError",
    "attacks_for",
    "compare",
    "load_behaviors",
    "make_attack",
    "red_team",
    "shipped_packs",
    "strategy",
]

del _registered
