"""Policy files in, policies out: one file, or folders of them that may be edited while they serve."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import ValidationError

from policies.alignment import RewardServer
from policies.document import Mark, read_document
from policies.errors import Fault, PolicyError, Problem, UnknownPolicy
from policies.explain import dotted, explain, place
from policies.references import judges, references
from policies.registry import RegistryError
from policies.spec import ModelRef, PolicySpec
from policies.tenants import TenantFile, TenantSpec, adapted, adjustable_problems, variants
from policies.watch import Fingerprint, fingerprint, policy_files, settled_changes

SHIPPED = Path(__file__).parent / "library"
"""The policies that come with Keel: open, standard, strict and observe."""

Check = Callable[[PolicySpec], Iterable[Problem]]


class Checkpoints(Protocol):
    """What loading asks of the checkpoint registry."""

    def resolve(self, ref: str) -> Any:
        """The checkpoint that `ref` names. Raises `policies.registry.RegistryError`."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy as it was read: immutable, so that a request keeps what it began with.

    `digest` is the hex SHA-256 of the spec's canonical JSON; it changes exactly when the policy does.
    `tenant` is whose variant it is, where it isn't everybody's.
    """

    spec: PolicySpec
    digest: str
    path: Path | None = None
    tenant: TenantSpec | None = None

    @classmethod
    def of(cls, spec: PolicySpec, path: Path | None = None, tenant: TenantSpec | None = None) -> LoadedPolicy:
        return cls(spec, digest(spec), path, tenant)

    @property
    def name(self) -> str:
        return self.spec.name

    def with_model(self, model: ModelRef) -> LoadedPolicy:
        """The same policy in front of another model, and so under another digest."""
        return self.of(self.spec.with_model(model), self.path)


def digest(spec: PolicySpec) -> str:
    """Hex SHA-256 of `spec` as JSON with sorted keys and no white space, defaults included."""
    canonical = json.dumps(
        spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def load_policy(
    path: Path,
    registry: Checkpoints | None = None,
    *,
    check: Check | None = None,
    model: ModelRef | None = None,
) -> LoadedPolicy:
    """The policy in `path`. Raises `PolicyError` with everything that is wrong with it.

    registry: where checkpoints must exist; None leaves that unchecked.
    check:    what else must hold, such as `guardrails.build.problems`; it gets a spec of the right shape.
    model:    put in place of the file's own.
    """
    path = Path(path)
    document = read_document(path)
    try:
        spec = PolicySpec.model_validate(document.data)
    except ValidationError as error:
        raise PolicyError(explain(error, document, path)) from None
    if model is not None:
        spec = spec.with_model(model)
    problems = [*_problems(spec, registry, check), *adjustable_problems(spec)]
    if problems:
        raise PolicyError(place(problem, document, path) for problem in problems)
    return LoadedPolicy.of(spec, path)


def _problems(spec: PolicySpec, registry: Checkpoints | None, check: Check | None) -> Iterator[Problem]:
    yield from _missing_checkpoints(spec, registry)
    yield from _missing_keys(spec)
    yield from check(spec) if check else ()


def _missing_checkpoints(spec: PolicySpec, registry: Checkpoints | None) -> Iterable[Problem]:
    if registry is None:
        return
    for loc, reference in references(spec):
        try:
            registry.resolve(reference)
        except RegistryError as error:
            yield Problem(loc, str(error))


def _missing_keys(spec: PolicySpec) -> Iterable[Problem]:
    single = [(("model", "upstream"), spec.model.upstream)] if spec.model.upstream else []
    several = [
        (("model", "upstreams", index), upstream) for index, upstream in enumerate(spec.model.upstreams)
    ]
    servers = [
        (("rerank", "model"), model.upstream)
        for model in (spec.rerank.models if spec.rerank else ())
        if isinstance(model, RewardServer)
    ]
    judging = [(loc, judge.upstream) for loc, judge in judges(spec) if judge.upstream is not None]
    for loc, upstream in [*single, *several, *servers, *judging]:
        variable = upstream.api_key_env
        if variable is not None and not os.environ.get(variable):
            message = f"environment variable {variable!r} is not set; it must hold the upstream's key"
            yield Problem((*loc, "api_key_env"), message)


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """What a reload changed, by policy name, and what it could not take over.

    `policies` is what holds from now on: where `faults` tells of a file, its former policy still stands.
    `mended`: the reload before had faults and this one has none, though what is served may be as it was.
    """

    policies: Mapping[str, LoadedPolicy]
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    mended: bool = False

    @property
    def ok(self) -> bool:
        return not self.faults

    def __bool__(self) -> bool:
        """Whether anything is to be told."""
        return bool(self.added or self.changed or self.removed or self.faults or self.mended)


class PolicyLibrary:
    """The policies of several folders, by name.

    Later folders override earlier ones, and all of them the shipped policies. Within one folder a name may
    be used once. `reload` swaps all policies in one step; what is wrong is not taken over, and the policy
    that stood before still stands. Tenants' variants are policies called `policy#tenant`. Safe to read from
    any thread at any time.
    """

    def __init__(
        self,
        dirs: Sequence[Path] = (),
        registry: Checkpoints | None = None,
        *,
        check: Check | None = None,
        model: ModelRef | None = None,
        shipped: Path | None = SHIPPED,
        tenants: Sequence[Path] = (),
        strict: bool = True,
    ) -> None:
        """Loads everything; raises `PolicyError` with all that is wrong in all files.

        model:  what answers under the shipped policies, in place of the checkpoint that they name.
        tenants: folders of tenants' files.
        strict: False leaves out what is wrong, for those who look at one policy and don't serve.
        """
        self._shipped = shipped
        self._folders = [*([shipped] if shipped else []), *map(Path, dirs)]
        self._tenants = [Path(folder) for folder in tenants]
        self._tenant_files: dict[Path, TenantFile] = {}
        self._registry, self._check, self._model = registry, check, model
        self._lock = threading.Lock()
        self._files: dict[Path, LoadedPolicy] = {}
        self._policies: Mapping[str, LoadedPolicy] = MappingProxyType({})
        self._seen: Fingerprint = ()
        self._faulty = False
        outcome = self.reload()
        if outcome.faults and strict:
            raise PolicyError(outcome.faults)

    def get(self, name: str) -> LoadedPolicy:
        """The policy called `name`, as it is now. Raises `UnknownPolicy`."""
        policies = self._policies
        try:
            return policies[name]
        except KeyError:
            raise UnknownPolicy(name, policies) from None

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._policies))

    def snapshot(self) -> Mapping[str, LoadedPolicy]:
        """All policies as they are now, by name; a later reload doesn't change it."""
        return self._policies

    def reload(self) -> ReloadOutcome:
        """Reads all files anew. Never raises for what is in them: see `ReloadOutcome.faults`."""
        with self._lock:
            self._seen = fingerprint([*self._folders, *self._tenants])
            files, faults = self._read_all()
            before, after = self._policies, {policy.name: policy for policy in files.values()}
            after |= self._variants(after, faults)
            self._files, self._policies = files, MappingProxyType(after)
            mended, self._faulty = self._faulty and not faults, bool(faults)
        return ReloadOutcome(
            policies=self._policies,
            added=tuple(sorted(after.keys() - before.keys())),
            changed=tuple(
                sorted(n for n in after.keys() & before.keys() if after[n].digest != before[n].digest)
            ),
            removed=tuple(sorted(before.keys() - after.keys())),
            faults=tuple(sorted(set(faults))),
            mended=mended,
        )

    async def watch(self, *, poll: float = 5.0, settle: float = 0.3) -> AsyncIterator[ReloadOutcome]:
        """Reloads when files change, and yields what came of it; ends when the caller stops iterating."""
        folders = [*self._folders, *self._tenants]
        async for _ in settled_changes(folders, lambda: self._seen, poll=poll, settle=settle):
            outcome = await asyncio.to_thread(self.reload)
            if outcome:
                yield outcome

    def _read_all(self) -> tuple[dict[Path, LoadedPolicy], list[Fault]]:
        """Every file's policy, lower folders first, and all faults."""
        files: dict[Path, LoadedPolicy] = {}
        faults: list[Fault] = []
        for folder in self._folders:
            found = self._read_folder(folder, faults)
            files |= self._without_twins(found, faults)
        return files, faults

    def _variants(self, owners: Mapping[str, LoadedPolicy], faults: list[Fault]) -> dict[str, LoadedPolicy]:
        """The tenants' own policies. One that can't be had anew is what it was, if there was one and the
        owner's is what it was; else it is the owner's new one, as near to the tenant's changes as may be."""
        tenants = dict(self._read_tenants(faults))
        self._tenant_files = tenants

        def make(spec: PolicySpec, file: TenantFile) -> LoadedPolicy:
            problems = [*_problems(spec, self._registry, self._check)]
            if problems:
                told = [Problem(("policies", spec.name), f"{dotted(p.loc)}{p.message}") for p in problems]
                raise file.refuse(told)
            return LoadedPolicy.of(spec, file.path, file.spec)

        specs = {name: policy.spec for name, policy in owners.items()}
        found, wrong = variants(tenants.values(), specs, make)
        faults += wrong
        kept = {file.path for file in tenants.values()} & {fault.path for fault in wrong}
        former = {
            name: self._standing(policy, owners[policy.name])
            for name, policy in self._policies.items()
            if name not in found
            and policy.tenant is not None
            and policy.path in kept
            and policy.name in owners
        }
        return former | found

    def _standing(self, variant: LoadedPolicy, owners: LoadedPolicy) -> LoadedPolicy:
        """A variant whose file doesn't go with the owner's policy any more."""
        before = self._policies.get(owners.name)
        if before is not None and before.digest == owners.digest:
            return variant
        assert variant.tenant is not None  # noqa: S101 - it is a tenant's
        spec = adapted(owners.spec, variant.tenant)
        if [*_problems(spec, self._registry, self._check)]:
            spec = owners.spec
        return LoadedPolicy.of(spec, variant.path, variant.tenant)

    def _read_tenants(self, faults: list[Fault]) -> Iterator[tuple[Path, TenantFile]]:
        for folder in self._tenants:
            try:
                paths = policy_files(folder)
            except OSError as error:
                faults.append(Fault(folder, 1, 1, f"can't be read: {error.strerror or error}"))
                paths = [path for path in self._tenant_files if path.parent == folder]
            for path in paths:
                try:
                    yield path, TenantFile.read(path)
                except PolicyError as error:
                    faults += error.faults
                    if path in self._tenant_files:
                        yield path, self._tenant_files[path]

    def _read_folder(self, folder: Path, faults: list[Fault]) -> dict[Path, LoadedPolicy]:
        try:
            paths = policy_files(folder)
        except OSError as error:
            faults.append(Fault(folder, 1, 1, f"can't be read: {error.strerror or error}"))
            return {path: policy for path, policy in self._files.items() if path.parent == folder}
        found: dict[Path, LoadedPolicy] = {}
        for path in paths:
            try:
                model = self._model if folder == self._shipped else None
                found[path] = load_policy(path, self._registry, check=self._check, model=model)
            except PolicyError as error:
                faults += error.faults
                if path in self._files:
                    found[path] = self._files[path]
        return found

    def _without_twins(
        self, found: dict[Path, LoadedPolicy], faults: list[Fault]
    ) -> dict[Path, LoadedPolicy]:
        """`found` with each name once: files that claim the same keep what they held before."""
        by_name: dict[str, list[Path]] = {}
        for path, policy in found.items():
            by_name.setdefault(policy.name, []).append(path)
        kept = dict(found)
        for name, paths in by_name.items():
            if len(paths) == 1:
                continue
            for path in paths:
                others = ", ".join(str(other) for other in paths if other != path)
                mark = _name_mark(path)
                faults.append(
                    Fault(path, mark.line, mark.column, f"policy {name!r} is also defined in {others}")
                )
                if path in self._files:
                    kept[path] = self._files[path]
                else:
                    del kept[path]
        return kept


def _name_mark(path: Path) -> Mark:
    try:
        return read_document(path).find(("name",))
    except PolicyError:
        return Mark(1, 1)
