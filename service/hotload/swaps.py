"""One checkpoint in another's place, while requests are answered.

    examine ──► load beside ──► canary ──► move the alias ──► switch ──► let the former finish, unload it
       └──────────────┴────────────┴─► refused: nothing that runs was touched, the reason is told

An alias is moved in one step on disk, and policies are switched in one step in memory. So whoever dies in
between comes back with the former checkpoint, or with the new one, whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from structlog.typing import FilteringBoundLogger

from policies.canary import DEFAULT, CanarySet, load_canary
from policies.examine import Demands, examine, in_place_obstacle, must_untie, speaker
from policies.history import Allowance
from policies.load import LoadedPolicy
from policies.registry import Registry, RegistryError, ResolvedCheckpoint
from policies.watch import ticks
from service.audit import GATEWAY, AuditLog
from service.catalog import Catalog, Change, Gate, Served
from service.engine.engine import Engine
from service.engine.vllm_command import KV_CACHE_BYTES, on_cpu
from service.engines import Engines
from service.hotload import memory
from service.hotload.accepted import Accepted
from service.hotload.canary import Asked, Canary
from service.hotload.in_place import other_weights, quiet
from service.settings import Settings
from service.telemetry.metrics import Metrics

Outcome = Literal["promoted", "rolled_back", "followed", "checked", "unchanged", "refused"]
Why = Literal["promote", "rollback", "follow"]
Tell = Callable[[str, str], None]
"""Is told every step as it is done: its name, and what was seen."""

_OUTCOMES: Mapping[Why, Outcome] = {"promote": "promoted", "rollback": "rolled_back", "follow": "followed"}


def _nobody(name: str, seen: str) -> None:
    """Told of every step, and keeps it to itself."""


class SwapRefused(Exception):
    """Nothing was changed; the message says why."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A swap that is asked for.

    ref:   what the alias is to mean; None for what it meant before.
    allow: what may differ from what it means now.
    actor: who asks, for the audit log.
    dry:   say what would be done, and whether the checkpoint would be refused for what lies on disk.
    """

    alias: str
    ref: str | None = None
    why: Why = "promote"
    allow: frozenset[Allowance] = frozenset()
    actor: str = GATEWAY
    dry: bool = False


@dataclass(frozen=True, slots=True)
class SwapResult:
    """What became of it. `ref` is what the alias means here now, `former` what it meant before."""

    alias: str
    outcome: Outcome
    ref: str
    former: str | None
    seconds: float
    reason: str = ""
    steps: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        return self.outcome != "refused"


@dataclass(slots=True)
class _Work:
    """One swap under way."""

    wish: Wish
    tell: Tell
    former: str | None = None
    new: ResolvedCheckpoint | None = None
    steps: list[tuple[str, str]] = field(default_factory=list)

    def step(self, name: str, seen: str) -> None:
        self.steps.append((name, seen))
        self.tell(name, seen)


class Swaps:
    """All swaps of one gateway, one at a time."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        catalog: Catalog,
        engines: Engines,
        canary: Canary,
        metrics: Metrics,
        log: FilteringBoundLogger,
        audit: AuditLog,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._catalog = catalog
        self._engines = engines
        self._canary = canary
        self._metrics = metrics
        self._log = log
        self._audit = audit
        self._accepted = Accepted(settings.state_dir)
        self._one = asyncio.Lock()
        self._begun: set[asyncio.Task[SwapResult]] = set()
        self.refused: dict[str, tuple[str, str]] = {}
        """By alias, what it means in the registry and not here, and why not."""

    async def start(self, policies: Mapping[str, LoadedPolicy]) -> None:
        """Serve the policies, with every alias as it stands; where that can't be, as it was served last.

        Raises what `Catalog.replace` does where there is nothing to fall back on.
        """
        accepted = await asyncio.to_thread(self._accepted.read, self._registry)
        aliases = await asyncio.to_thread(self._registry.aliases)
        moved = {alias: ref for alias, ref in accepted.items() if aliases.get(alias) not in (None, ref)}
        try:
            for alias, former in moved.items():
                work = _Work(Wish(alias, aliases[alias], "follow"), _nobody, former)
                await asyncio.to_thread(self._examine, work, self._registry.resolve(aliases[alias]))
            await self._catalog.replace(policies, gate=self._gate_of_start(moved) if moved else None)
        except Exception as error:
            if not moved:
                raise
            self._log.error("checkpoint_fallback", error=str(error), served=moved)
            await self._catalog.replace(policies, pins=moved)
            for alias in moved.keys() & self._catalog.pins.keys():
                self._refuse(alias, aliases[alias], str(error))
        await self._remember()

    async def watch(self, poll: float) -> None:
        """Follow the registry's aliases, for ever."""
        async for _ in ticks([self._registry.root], poll):
            try:
                await self.follow()
            except RegistryError as error:
                self._log.error("aliases_unreadable", error=str(error))

    def begin(self, wish: Wish, tell: Tell) -> asyncio.Task[SwapResult]:
        """`swap`, in a task of its own: whoever asked and goes away half-way doesn't leave half a swap."""
        task = asyncio.create_task(self.swap(wish, tell))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return task

    async def stop(self) -> None:
        """Give up what is under way; what is served and what is on disk are whole."""
        for task in self._begun:
            task.cancel()
        await asyncio.gather(*self._begun, return_exceptions=True)

    async def swap(self, wish: Wish, tell: Tell = _nobody) -> SwapResult:
        """Do it, or say why not. Waits for the swap that is under way, if there is one."""
        work = _Work(wish, tell)
        async with self._one:
            began = time.perf_counter()
            reason = ""
            try:
                outcome = await self._swap(work)
            except Exception as error:
                outcome, reason = "refused", str(error) or type(error).__name__
                if work.new is not None and wish.why == "follow":
                    self._refuse(wish.alias, work.new.ref, reason)
            seconds = time.perf_counter() - began
        changed = outcome in _OUTCOMES.values()
        if changed or (outcome == "refused" and not wish.dry):
            self._metrics.checkpoint_swaps.labels(wish.alias, outcome).inc()
        if changed:
            self._metrics.checkpoint_swap_seconds.labels(wish.alias).observe(seconds)
        ref = work.new.ref if changed and work.new is not None else work.former or ""
        result = SwapResult(wish.alias, outcome, ref, work.former, seconds, reason, tuple(work.steps))
        self._tell(work, result)
        return result

    async def follow(self, again: bool = False, actor: str = GATEWAY) -> list[SwapResult]:
        """Go over to what the served aliases mean in the registry now; what was refused only if `again`."""
        aliases = await asyncio.to_thread(self._registry.aliases)
        results = []
        for alias, pinned in list(self._catalog.pins.items()):
            ref = aliases.get(alias, pinned)
            if ref == pinned:
                self._forgive(alias)
            elif again or self.refused.get(alias, ("", ""))[0] != ref:
                results.append(await self.swap(Wish(alias, ref, "follow", actor=actor)))
        return results

    # One swap

    async def _swap(self, work: _Work) -> Outcome:
        wish = work.wish
        aliases = await asyncio.to_thread(self._registry.aliases)
        work.former = self._catalog.pins.get(wish.alias) or aliases.get(wish.alias)
        work.new = new = await asyncio.to_thread(self._resolve, wish)
        if new.ref == work.former and aliases.get(wish.alias) == new.ref:
            work.step("alias", f"{wish.alias} means {new.ref} already")
            return "unchanged"
        await asyncio.to_thread(self._examine, work, new)
        followers = [served for served in self._catalog.values() if wish.alias in served.checkpoints]
        reloaded = await asyncio.to_thread(self._reloadable, work, new, followers)
        if reloaded is None and await asyncio.to_thread(self._grows, wish.alias, new, followers):
            await asyncio.to_thread(self._check_memory, new, work)
        if wish.dry:
            names = ", ".join(served.name for served in followers) or "no policy"
            work.step("plan", f"{names} would go over to it, {'in place' if reloaded else 'beside'}")
            return "checked"
        if not followers:
            await self._move(work, new)
            work.step("switch", "no policy here follows this alias")
        else:
            await (self._beside(work, new) if reloaded is None else self._in_place(work, new, reloaded))
            work.step("switch", f"{', '.join(served.name for served in followers)}: new requests go to it")
            await self._remember()
        self._forgive(wish.alias)
        return _OUTCOMES[wish.why]

    async def _beside(self, work: _Work, new: ResolvedCheckpoint) -> None:
        async def gate(changes: Sequence[Change]) -> None:
            work.step("load", "loaded beside what answers now")
            if work.wish.why != "rollback":
                await self._try(work, changes)
            await self._move(work, new)

        await self._catalog.replace(pins={work.wish.alias: new.ref}, gate=gate)

    async def _in_place(self, work: _Work, new: ResolvedCheckpoint, old: tuple[Engine, str]) -> None:
        engine, ref = old
        former = await asyncio.to_thread(self._registry.resolve, ref)

        async def gate(changes: Sequence[Change]) -> None:
            if work.wish.why != "rollback":
                await self._try(work, [(None, served) for _, served in changes])
            await self._move(work, new)

        async with quiet(self._catalog, engine, self._settings.drain_timeout_s):
            work.step("hold", "nothing is in flight; who comes now waits")
            async with other_weights(engine, new.path, former.path):
                work.step("load", "read in place, the prefix cache is reset")
                self._engines.rename(former.ref, new.ref)
                try:
                    await self._catalog.replace(pins={work.wish.alias: new.ref}, gate=gate)
                except BaseException:
                    self._engines.rename(new.ref, former.ref)
                    raise

    def _reloadable(
        self, work: _Work, new: ResolvedCheckpoint, followers: Sequence[Served]
    ) -> tuple[Engine, str] | None:
        """The engine that can read the weights in place, and the checkpoint that it runs; None: beside."""
        models = [served for served in followers if served.spec.model.checkpoint == work.wish.alias]
        if self._settings.engine.swap != "in_place" or not models or self._settings.upstream:
            return None
        engine, ref = models[0].target.engine, models[0].target.checkpoint
        ours = {id(served) for served in models}
        sharing = [s.name for s in self._catalog.values() if engine in s.engines and id(s) not in ours]
        old = self._registry.resolve(ref)
        if {new.manifest.kind, old.manifest.kind} != {"full"}:
            why = "an adapter is loaded, not read in place"
        elif sharing or engine.adapters.loaded:
            why = f"its vLLM also serves {', '.join(sharing or sorted(engine.adapters.loaded))}"
        elif on_cpu("auto") and must_untie(new):
            why = (
                "on a CPU vLLM keeps a packed copy of tied embeddings; publish it with its own lm_head.weight"
            )
        else:
            why = in_place_obstacle(new, old) or ""
        if why:
            work.step("beside", f"not in place: {why}")
            return None
        return engine, ref

    def _resolve(self, wish: Wish) -> ResolvedCheckpoint:
        if wish.ref is None:
            return self._registry.previous(wish.alias)
        if wish.alias in self._registry.names():
            raise SwapRefused(f"{wish.alias!r} is a checkpoint's name; an alias is what moves")
        return self._registry.resolve(wish.ref)

    def _examine(self, work: _Work, new: ResolvedCheckpoint) -> None:
        """Everything that can be known from the bytes. What served before is only looked at for its bytes."""
        if work.wish.why == "rollback":
            self._registry.verify(new)
            work.step("files", "every byte as published; it has been served before")
            return
        allow = work.wish.allow
        if work.wish.why == "follow":
            allow |= self._registry.allowances(work.wish.alias, new.ref)
        reference = self._registry.resolve(work.former) if work.former else None
        rank = self._settings.engine.max_adapter_rank
        examine(self._registry, new, Demands(reference, allow, rank), work.step)

    def _grows(self, alias: str, new: ResolvedCheckpoint, followers: Sequence[Served]) -> bool:
        """Whether another vLLM would be started on this host's memory."""
        models = [served for served in followers if served.spec.model.checkpoint == alias]
        if not models or self._settings.upstream or not on_cpu("auto"):
            return False
        return not self._engines.runs(speaker(self._registry, new).ref, new.manifest.kind == "adapter")

    def _check_memory(self, new: ResolvedCheckpoint, work: _Work) -> None:
        free = memory.available()
        wanted = memory.needed(speaker(self._registry, new), KV_CACHE_BYTES)
        if free is None:
            return
        if free < wanted:
            raise SwapRefused(
                f"a second vLLM needs about {wanted >> 20} MiB beside the first, {free >> 20} MiB are free; "
                "free some, or stop the gateway, promote, and start it again"
            )
        work.step("memory", f"about {wanted >> 20} MiB wanted, {free >> 20} MiB free")

    async def _try(self, work: _Work, changes: Sequence[Change]) -> None:
        prompts = await asyncio.to_thread(self._prompts, work.wish.alias)
        asked: Asked = {}
        for former, served in changes:
            seen = await self._canary.run(served, former, prompts, asked)
            work.step("canary", f"{served.name}: {seen.told()}")

    def _prompts(self, alias: str) -> CanarySet:
        hotload = self._settings.hotload
        path: Path = hotload.canaries.get(alias) or hotload.canary or DEFAULT
        return load_canary(path)

    async def _move(self, work: _Work, new: ResolvedCheckpoint) -> None:
        wish = work.wish
        if wish.why == "follow":
            return  # it was moved by whoever we follow
        how: Literal["promote", "rollback"] = "rollback" if wish.why == "rollback" else "promote"
        allow = tuple(sorted(wish.allow))
        await asyncio.to_thread(lambda: self._registry.point(wish.alias, new.ref, how=how, allow=allow))
        work.step("alias", f"{wish.alias} means {new.ref}")

    def _gate_of_start(self, moved: Collection[str]) -> Gate:
        async def gate(changes: Sequence[Change]) -> None:
            for alias in moved:
                followers = [change for change in changes if alias in change[1].checkpoints]
                await self._try(_Work(Wish(alias), _nobody), followers)

        return gate

    # What is remembered

    def _tell(self, work: _Work, result: SwapResult) -> None:
        """The log, and for what was more than a question the audit log."""
        asked = work.new.ref if work.new is not None else work.wish.ref
        told = {
            "outcome": result.outcome,
            "ref": asked,
            "former": result.former,
            "seconds": round(result.seconds, 3),
            "reason": result.reason,
        }
        level = self._log.info if result.ok else self._log.error
        level("checkpoint_swap", alias=result.alias, why=work.wish.why, **told)
        if result.outcome not in ("checked", "unchanged") and not work.wish.dry:
            canary = [seen for step, seen in work.steps if step == "canary"]
            details = {**told, "reason": result.reason[:500], "canary": canary[:8]}
            action = f"checkpoint.{work.wish.why}"
            self._audit.record(action, actor=work.wish.actor, subject=result.alias, details=details)

    async def _remember(self) -> None:
        await asyncio.to_thread(self._accepted.write, self._catalog.pins)

    def _refuse(self, alias: str, ref: str, reason: str) -> None:
        self.refused[alias] = (ref, reason)
        self._metrics.checkpoint_behind.labels(alias).set(1)

    def _forgive(self, alias: str) -> None:
        self.refused.pop(alias, None)
        self._metrics.checkpoint_behind.labels(alias).set(0)
