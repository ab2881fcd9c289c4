"""`/v1/checks` and `/v1/moderations`: ask the guards about a text; nothing is generated."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from guardrails.chain import check_texts
from guardrails.guard import Guard, JobRunner, Stage
from guardrails.judge_formats import UNSAFE
from guardrails.parts import GuardReport, Part, PartResult
from guardrails.verdict import Verdict
from guardrails.verdict_cache import VerdictCache
from policies.guards import GuardBase
from policies.judge import JudgeSpec
from policies.taxonomy import LLAMA_GUARD_CODES, MODERATION_CATEGORIES, covered, moderation_scores
from service.catalog import Catalog, Served
from service.conversation import chat_places
from service.http import Call
from service.openai.errors import BadRequest, Unavailable
from service.openai.types import CheckRequest, ContentPart, ModerationRequest
from service.report import count, count_times, render_guard
from service.telemetry.metrics import Metrics


class Checks:
    """Both endpoints' handlers."""

    def __init__(
        self, catalog: Catalog, runner: JobRunner, cache: VerdictCache, metrics: Metrics, default_policy: str
    ) -> None:
        self._catalog = catalog
        self._runner = runner
        self._cache = cache
        self._metrics = metrics
        self._default_policy = default_policy

    async def check(self, call: Call, request: CheckRequest, payload: dict[str, Any]) -> Mapping[str, Any]:
        """Every guard's verdict and scores on each text."""
        served = self._catalog.get(request.model, call.caller)
        call.policy = served.name
        if (request.messages is None) == (request.input is None):
            raise BadRequest("give either 'messages' or 'input'", param="input")
        if request.messages is not None:
            if request.stage == "output":
                raise BadRequest("'messages' are examined as input; for a reply give 'input'", param="stage")
            places = [place for place in chat_places(payload) if place.part.role in served.spec.roles]
            results = await self._run(served, "input", [place.part for place in places])
            rendered = [
                {"param": place.param, "role": place.part.role, **_render(result)}
                for place, result in zip(places, results, strict=True)
            ]
        else:
            texts = [request.input] if isinstance(request.input, str) else request.input or []
            role = "user" if request.stage == "input" else "assistant"
            parts = [Part(role, text, stage=request.stage, prompt=request.prompt) for text in texts]
            rendered = [_render(result) for result in await self._run(served, request.stage, parts)]
        return {
            "object": "check",
            "model": served.name,
            "policy_digest": served.policy.digest,
            "results": rendered,
        }

    async def moderate(
        self, call: Call, request: ModerationRequest, payload: dict[str, Any]
    ) -> Mapping[str, Any]:
        """OpenAI's moderation result, from the labels that the policy's classifiers score."""
        served = self._catalog.get(request.model or self._default_policy, call.caller)
        call.policy = served.name
        parts = [Part("user", text) for text in _texts(request)]
        guards = _classifiers(served)
        if not guards:
            raise BadRequest(
                f"the policy {served.name!r} has no guard that scores harm categories, such as 'toxicity'",
                param="model",
            )
        results = await self._examine(served, guards, "input", parts)
        failed = sorted({r.guard for result in results for r in result.reports if r.state == "failed"})
        if failed:
            # A score of 0 would say "harmless"; nobody has looked.
            raise _failed(failed)
        return {
            "id": "modr-" + secrets.token_hex(12),
            "model": served.name,
            "results": [_moderation(result.reports) for result in results],
        }

    async def _run(self, served: Served, stage: Stage, parts: Sequence[Part]) -> Sequence[PartResult]:
        guards = served.guards.input if stage == "input" else served.guards.output
        return await self._examine(served, guards, stage, parts)

    async def _examine(
        self, served: Served, guards: Sequence[Guard], stage: Stage, parts: Sequence[Part]
    ) -> Sequence[PartResult]:
        if not guards or not parts:
            return [PartResult(part, _NOTHING, part.text) for part in parts]
        result = await check_texts(
            guards, parts, self._runner, self._cache, policy_digest=served.policy.digest
        )
        for part in result.parts:
            count(self._metrics, stage, part.verdict)
            count_times(self._metrics, stage, part.reports)
        return result.parts


_NOTHING = Verdict()
# The categories are about harm: guards that score anything else have no place in OpenAI's result.
_HARM_GUARDS = frozenset({"toxicity", "harm"})
_VERDICTS = frozenset({UNSAFE, *LLAMA_GUARD_CODES.values()})
"""What is flagged even where OpenAI has no category for it."""


def _classifiers(served: Served) -> list[Guard]:
    """The policy's guards that score harm, each configuration once."""
    pairs = [
        *zip(served.spec.output, served.guards.output, strict=True),
        *zip(served.spec.input, served.guards.input, strict=True),
    ]
    chosen = {spec.model_dump_json(): guard for spec, guard in reversed(pairs) if _scores_harm(spec)}
    return list(chosen.values())


def _scores_harm(spec: GuardBase) -> bool:
    if isinstance(spec, JudgeSpec):
        return spec.format == "llama_guard"
    return spec.guard in _HARM_GUARDS  # type: ignore[attr-defined]  # the discriminator


def _texts(request: ModerationRequest) -> list[str]:
    """The texts to look at. Raises `BadRequest` for what no guard can see."""
    if isinstance(request.input, str):
        return [request.input]
    texts: list[str] = []
    for index, item in enumerate(request.input):
        if isinstance(item, ContentPart):
            if item.type != "text" or item.text is None:
                raise BadRequest("only text can be moderated here", param=f"input[{index}]")
            texts.append(item.text)
        else:
            texts.append(item)
    return texts


def _moderation(reports: Sequence[GuardReport]) -> dict[str, Any]:
    scores: dict[str, float] = {}
    flagged: dict[str, float] = {}
    for report in reports:
        for label, score in report.categories.items():
            scores[label] = max(score, scores.get(label, 0.0))
            flagged.setdefault(label, 0.0)
        for finding in report.findings:
            flagged[finding.entity_type.lower()] = 1.0  # a finding's type is its label in capitals
    categories = {name: score > 0 for name, score in moderation_scores(flagged).items()}
    can_tell = covered(scores)
    return {
        "flagged": any(categories.values()) or any(flagged.get(label) for label in _VERDICTS),
        "categories": categories,
        "category_scores": moderation_scores(scores),
        "category_applied_input_types": {
            name: ["text"] if name in can_tell else [] for name in MODERATION_CATEGORIES
        },
    }


def _failed(guards: Sequence[str]) -> Unavailable:
    return Unavailable(f"guards could not answer: {', '.join(guards)}", code="guard_failed")


def _render(result: PartResult) -> dict[str, Any]:
    action = result.verdict.action
    status = "blocked" if action.withholds else "modified" if result.changed else "passed"
    return {
        "status": status,
        "action": action.name.lower(),
        "content": result.text,
        "guards": [render_guard(report) for report in result.reports],
    }
