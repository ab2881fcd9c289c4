"""Tenants: callers for whom a policy's owner lets some settings differ, within limits.

The owner says in the policy what may be changed, and how far:

    adjustable:
      - {setting: output.toxicity.threshold, min: 0.3, max: 0.8}
      - {setting: output.pii.action, one_of: [redact, block]}
      - {setting: input.pii.entities, at_least: [EMAIL_ADDRESS, US_SSN]}
      - {setting: refusal}

A tenant's file says who the tenant is and what it changes. Everything else stays the owner's:

    tenant: acme
    keys: [acme-web, acme-batch]
    policies:
      standard:
        output.toxicity.threshold: 0.5
        refusal: Acme's assistant can't help with that.

A setting is written as its path; a guard is named by its title (its `label`, or else its kind).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, JsonValue, ValidationError

from policies.adjustable import Adjustable
from policies.base import Frozen, Name
from policies.document import Document, read_document
from policies.errors import Fault, PolicyError, Problem
from policies.explain import explain, place, suggestion
from policies.guards import GuardBase
from policies.spec import PolicySpec

T = TypeVar("T")

SEPARATOR = "#"
"""Between a policy's name and a tenant's, where both together name one policy: `standard#acme`."""


class TenantSpec(Frozen):
    """One tenant. `keys` are the names of its API keys (`keel keys list`)."""

    tenant: Name
    description: str = ""
    keys: Annotated[tuple[str, ...], Field(min_length=1)]
    policies: Annotated[dict[Name, dict[str, JsonValue]], Field(min_length=1)]


class TenantFile:
    """A tenant as it was read, and where in its file everything stands."""

    def __init__(self, spec: TenantSpec, document: Document, path: Path) -> None:
        self.spec, self.document, self.path = spec, document, path

    @classmethod
    def read(cls, path: Path) -> TenantFile:
        """Raises `PolicyError` with everything that is wrong with the file by itself."""
        document = read_document(path)
        try:
            return cls(TenantSpec.model_validate(document.data), document, path)
        except ValidationError as error:
            raise PolicyError(explain(error, document, path, TenantSpec)) from None

    def policy(self, name: str, owners: PolicySpec) -> PolicySpec:
        """The owner's policy as this tenant has it. Raises `PolicyError` for what the owner doesn't allow."""
        changes = self.spec.policies[name]
        problems = [
            Problem(("policies", name, setting), message)
            for setting, value in changes.items()
            for message in _objections(owners, setting, value)
        ]
        if not problems:
            changed = _changed(owners, changes)
            try:
                return PolicySpec.model_validate(changed)
            except ValidationError as error:
                problems = [
                    Problem(("policies", name), f"with these changes the policy is wrong: {_told(details)}")
                    for details in error.errors(include_url=False)
                ]
        raise self.refuse(problems)

    def refuse(self, problems: list[Problem]) -> PolicyError:
        """The error that tells `problems` at their places in this file."""
        return PolicyError(place(problem, self.document, self.path) for problem in problems)


def variants(
    files: Iterable[TenantFile],
    owners: Mapping[str, PolicySpec],
    make: Callable[[PolicySpec, TenantFile], T],
) -> tuple[dict[str, T], list[Fault]]:
    """Every tenant's own policies by their names (`standard#acme`), as `make` wraps them, and what is wrong.

    owners: the policies that all callers share, by name.
    """
    found: dict[str, T] = {}
    faults: list[Fault] = []
    tenants: dict[str, TenantFile] = {}
    holders: dict[str, str] = {}
    for file in files:
        spec = file.spec
        problems = [
            Problem(("keys", index), f"the key {key!r} belongs to the tenant {holders[key]!r} already")
            for index, key in enumerate(spec.keys)
            if key in holders
        ]
        if spec.tenant in tenants:
            other = tenants[spec.tenant].path
            problems.append(Problem(("tenant",), f"tenant {spec.tenant!r} is also defined in {other}"))
        if problems:
            faults += file.refuse(problems).faults
            continue
        tenants[spec.tenant] = file
        holders |= dict.fromkeys(spec.keys, spec.tenant)
        for name in spec.policies:
            if name not in owners:
                message = f"there is no policy {name!r}{suggestion(name, sorted(owners))}"
                faults += file.refuse([Problem(("policies", name), message)]).faults
                continue
            try:
                found[variant_name(name, spec.tenant)] = make(file.policy(name, owners[name]), file)
            except PolicyError as error:
                faults += error.faults
    return found, faults


def adapted(owners: PolicySpec, tenant: TenantSpec) -> PolicySpec:
    """The owner's policy with what it still allows of a tenant's changes, or comes nearest to them."""
    rules = {rule.setting: rule for rule in owners.adjustable}
    changes: dict[str, JsonValue] = {}
    for setting, value in tenant.policies[owners.name].items():
        near = rules[setting].nearest(value) if setting in rules else None
        if near is not None:
            changes[setting] = near
    try:
        return PolicySpec.model_validate(_changed(owners, changes))
    except ValidationError:
        return owners


def adjustable_problems(spec: PolicySpec) -> Iterator[Problem]:
    """What is wrong with `adjustable`: settings that the policy doesn't have, or has twice, and limits that
    no value of the setting can meet."""
    seen: set[str] = set()
    for index, rule in enumerate(spec.adjustable):
        place = ("adjustable", index)
        if locate(spec, rule.setting) is None:
            message = f"this policy has no setting {rule.setting!r}; write a path such as output.pii.action"
            yield Problem((*place, "setting"), message)
        elif rule.setting in seen:
            message = f"{rule.setting!r} stands here twice, and only one can say how far it may be changed"
            yield Problem((*place, "setting"), message)
        else:
            for key, value in rule.limits():
                if objection := _impossible(spec, rule.setting, value):
                    yield Problem((*place, *key), f"{rule.setting} can't be {value!r}: {objection}")
        seen.add(rule.setting)


def _impossible(spec: PolicySpec, setting: str, value: JsonValue) -> str | None:
    """Why the setting takes no such value, whatever else is set; None where it does."""
    try:
        PolicySpec.model_validate(_changed(spec, {setting: value}))
    except ValidationError as error:
        last = setting.rpartition(".")[2]
        for details in error.errors(include_url=False):
            if last in details["loc"]:
                return str(details["msg"]).removeprefix("Value error, ")
    return None


def variant_name(policy: str, tenant: str) -> str:
    """What a tenant's variant of a policy is called."""
    return f"{policy}{SEPARATOR}{tenant}"


def _told(details: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in details["loc"])
    return f"{where}: {details['msg']}" if where else str(details["msg"])


def _objections(owners: PolicySpec, setting: str, value: JsonValue) -> Iterator[str]:
    """What the owner has against the change."""
    rules = {rule.setting: rule for rule in owners.adjustable}
    rule: Adjustable | None = rules.get(setting)
    if rule is None:
        if not rules:
            yield f"the policy {owners.name!r} lets tenants change nothing"
        else:
            hint = suggestion(setting, list(rules))
            yield f"the policy {owners.name!r} doesn't let tenants change it{hint}"
        return
    objection = rule.objection(value)
    if objection:
        yield objection


def _changed(owners: PolicySpec, changes: Mapping[str, JsonValue]) -> dict[str, Any]:
    # What the owner left out stays left out: a spelled-out default may contradict another setting.
    data: dict[str, Any] = copy.deepcopy(owners.model_dump(mode="json", exclude_unset=True))
    for setting, value in changes.items():
        found = locate(owners, setting)
        assert found is not None  # noqa: S101 - the owner's policy was checked for it
        *way, last = found
        at: Any = data
        for part in way:
            at = at.setdefault(part, {}) if isinstance(part, str) else at[part]
        at[last] = value
    return data


def locate(spec: PolicySpec, setting: str) -> tuple[str | int, ...] | None:
    """The path of a setting in a policy's data, None where it has no such setting."""
    stage, dot, rest = setting.partition(".")
    if stage not in ("input", "output"):
        return _fields(spec, setting.split("."))
    guards: tuple[GuardBase, ...] = getattr(spec, stage)
    for index, guard in enumerate(guards):
        if dot and rest.startswith(f"{guard.title}."):
            inner = _fields(guard, rest.removeprefix(f"{guard.title}.").split("."))
            return None if inner is None else (stage, index, *inner)
    return None


def _fields(model: Frozen, parts: list[str]) -> tuple[str | int, ...] | None:
    """`parts` where they lead from `model` to a field, through models and dictionaries."""
    at: Any = model
    for number, part in enumerate(parts):
        if isinstance(at, Frozen):
            if part not in type(at).model_fields:
                return None
            at = getattr(at, part)
        elif not (isinstance(at, Mapping) and number == len(parts) - 1):
            return None
    return tuple(parts)
