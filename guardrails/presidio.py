"""Presidio in a guard worker: its real recognizers decide about candidates that the gateway found.

The gateway searches growing texts for the recognizers' own expressions (`describe` hands them over) and
asks about each cluster of overlapping matches once. What a recognizer adds to its expression happens here:
checksums, invalidation, libphonenumber, the words around a match, thresholds, and the removal of duplicates,
all as `presidio_analyzer.AnalyzerEngine.analyze` does it, in its order.

Nothing goes online: the e-mail recognizer's list of top-level domains is the snapshot inside tldextract, and
the tokenizer behind the context words is spaCy's blank pipeline of the language.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import regex
import tldextract.tldextract
from phonenumbers import phonenumberutil
from phonenumbers.phonemetadata import PhoneMetadata

from guardrails.classifier import scrubbed
from guardrails.imports import without
from guardrails.pii_wire import CandidatePattern, Cluster, Found

# Presidio and spaCy import these where they find them and do without otherwise: 12 seconds and 400 MiB.
_LARGE = ("torch", "transformers")
with without(*_LARGE):
    import presidio_analyzer.predefined_recognizers as predefined
    import spacy
    from presidio_analyzer import (
        AnalysisExplanation,
        EntityRecognizer,
        Pattern,
        PatternRecognizer,
        RecognizerResult,
    )
    from presidio_analyzer.context_aware_enhancers import LemmaContextAwareEnhancer
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import IbanRecognizer, PhoneRecognizer
    from spacy.language import Language
    from spacy.tokens import Doc

# libphonenumber looks at one character before a number, and at up to three after it (":30" makes it a time).
_PHONE_BEFORE, _PHONE_AFTER = 1, 3
_SCOPELESS_FLAGS = regex.compile(r"\(\?([imsx]+)\)")


@dataclass(frozen=True, slots=True)
class _Rule:
    """What to search for, and the recognizer that judges it. Without a `pattern`, libphonenumber does."""

    recognizer: EntityRecognizer
    pattern: Pattern | None
    candidate: CandidatePattern

    @classmethod
    def of(cls, recognizer: EntityRecognizer) -> list[_Rule]:
        (entity_type,) = recognizer.supported_entities
        if isinstance(recognizer, PhoneRecognizer):
            source = "(?i)" + phone_expression(recognizer.supported_regions)
            return [cls(recognizer, None, CandidatePattern(entity_type, source, _PHONE_AFTER))]
        if not isinstance(recognizer, PatternRecognizer):
            raise TypeError(f"{type(recognizer).__name__} has no expressions to search for")
        flags = _flags(recognizer)
        patterns: list[Pattern] = recognizer.patterns  # type: ignore[has-type]
        return [
            cls(recognizer, p, CandidatePattern(entity_type, _hoisted(p.regex, flags), 0)) for p in patterns
        ]


def recognizers() -> Iterator[EntityRecognizer]:
    """Every recognizer that Presidio ships and that needs no model and no service, by class name."""
    for _, kind in sorted(inspect.getmembers(predefined, inspect.isclass)):
        if issubclass(kind, PatternRecognizer | PhoneRecognizer):
            make: Callable[[], EntityRecognizer] = kind
            yield make()


def phone_expression(regions: Iterable[str]) -> str:
    """What every number that libphonenumber's matcher can find lies within, from the matcher's own parts.

    A run of digits and the punctuation allowed between them, with at least as many digits as the shortest
    number of `regions` has, and its extension.
    """
    shortest = min(length for region in regions for length in _metadata(region).general_desc.possible_length)
    plus = phonenumberutil._PLUS_CHARS
    punctuation = phonenumberutil._VALID_PUNCTUATION
    lead = rf"(?:[(\[（［{plus}][{punctuation}]{{0,4}}){{0,2}}"
    run = rf"\d(?:[{punctuation}{plus}]*+\d){{{shortest - 1},}}"
    return rf"{lead}{run}(?:{phonenumberutil._EXTN_PATTERNS_FOR_MATCHING})?"


def _metadata(region: str) -> Any:
    return PhoneMetadata.metadata_for_region(region)


def _flags(recognizer: PatternRecognizer) -> str:
    wanted = ((regex.IGNORECASE, "i"), (regex.MULTILINE, "m"), (regex.DOTALL, "s"))
    return "".join(letter for flag, letter in wanted if (recognizer.global_regex_flags or 0) & flag)


def _hoisted(expression: str, flags: str) -> str:
    """The expression with all its flags at its start; in `regex`'s version 0 they reach all of it anyway."""
    inner = "".join(_SCOPELESS_FLAGS.findall(expression))
    letters = "".join(sorted(set(flags + inner)))
    return f"(?{letters})" + _SCOPELESS_FLAGS.sub("", expression)


@Language.component("keel_lower_lemmas")
def _lower_lemmas(doc: Doc) -> Doc:
    """Context words are looked for within lemmas; a lower-cased word holds its lemma nearly always."""
    for token in doc:
        token.lemma_ = token.lower_
    return doc


class PresidioServable:
    """Judges clusters: a payload is a tuple of `Cluster`, a result what was `Found` in each one's window."""

    def __init__(self, language: str) -> None:
        # No list is fetched and no cache written; the module's own extractor would do both.
        offline = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=(), fallback_to_snapshot=True)
        tldextract.tldextract.TLD_EXTRACTOR = offline
        offline("example.com")
        self._recognizers = list(recognizers())
        self._rules = [rule for recognizer in self._recognizers for rule in _Rule.of(recognizer)]
        self._language = language
        with without(*_LARGE):  # spaCy imports what has registered itself with it
            nlp = spacy.blank(language)
        nlp.add_pipe("keel_lower_lemmas")
        self._engine = SpacyNlpEngine(models=[{"lang_code": language, "model_name": "blank"}])
        self._engine.nlp = {language: nlp}  # type: ignore[assignment]  # declared None until `load`
        self._nlp = nlp
        self._enhancer = LemmaContextAwareEnhancer()

    def describe(self) -> list[CandidatePattern]:
        """The expressions to search for; a candidate names one by its place in this list."""
        return [rule.candidate for rule in self._rules]

    def predict(self, batch: list[tuple[Cluster, ...]]) -> list[list[list[Found]]]:
        # Outside a memory zone spaCy keeps every word it ever saw.
        with self._nlp.memory_zone():
            return [[self._judge(cluster) for cluster in clusters] for clusters in batch]

    def _judge(self, cluster: Cluster) -> list[Found]:
        window = scrubbed(cluster.window)
        results: list[RecognizerResult] = []
        for index, start, end in cluster.candidates:
            results += self._decide(self._rules[index], window, start, end)
        results = [result for result in results if result.score > EntityRecognizer.MIN_SCORE]
        if results:
            results = self._enhance(window, results)
        results = [result for result in results if result.score >= cluster.threshold]
        kept = EntityRecognizer.remove_duplicates(results)
        return sorted(Found(r.entity_type, r.start, r.end, float(r.score)) for r in kept)

    def _decide(self, rule: _Rule, window: str, start: int, end: int) -> list[RecognizerResult]:
        """What the rule's recognizer makes of the match `window[start:end]`, context words aside."""
        recognizer = rule.recognizer
        if isinstance(recognizer, PhoneRecognizer):
            return _within(recognizer, window, start, end, _PHONE_BEFORE, _PHONE_AFTER)
        if isinstance(recognizer, IbanRecognizer):
            # Its `analyze` drops trailing groups until the checksum fits.
            return _within(recognizer, window, start, end, 0, 0)
        if rule.pattern is None or not isinstance(recognizer, PatternRecognizer):
            raise TypeError(f"{type(recognizer).__name__} judges no expression")
        match = window[start:end]
        score = rule.pattern.score
        valid = recognizer.validate_result(match)
        if valid is not None:
            score = EntityRecognizer.MAX_SCORE if valid else EntityRecognizer.MIN_SCORE
        if recognizer.invalidate_result(match):
            score = EntityRecognizer.MIN_SCORE
        name: str = recognizer.name  # type: ignore[has-type]
        explanation = AnalysisExplanation(recognizer=name, original_score=score)
        return [
            RecognizerResult(
                rule.candidate.entity_type,
                start,
                end,
                score,
                explanation,
                {
                    RecognizerResult.RECOGNIZER_NAME_KEY: name,
                    RecognizerResult.RECOGNIZER_IDENTIFIER_KEY: recognizer.id,
                },
            )
        ]

    def _enhance(self, window: str, results: list[RecognizerResult]) -> list[RecognizerResult]:
        artifacts = self._engine.process_text(window, self._language)
        enhanced: list[RecognizerResult] = self._enhancer.enhance_using_context(
            window, results, artifacts, self._recognizers
        )
        return enhanced


def _within(
    recognizer: EntityRecognizer, window: str, start: int, end: int, before: int, after: int
) -> list[RecognizerResult]:
    """What the recognizer itself finds in a match, given the few characters around it that it looks at."""
    left = max(0, start - before)
    text = window[left : end + after]
    found: Sequence[RecognizerResult]
    found = recognizer.analyze(text, recognizer.supported_entities, None)  # type: ignore[arg-type]
    results = []
    for result in found:
        result.start += left
        result.end += left
        if start <= result.start and result.end <= end:
            results.append(result)
    return results


def serve(language: str = "en") -> PresidioServable:
    """The factory for `guardrails.servable.ServableSpec`. `language` is spaCy's code for it."""
    return PresidioServable(language)


def supported_entities() -> dict[str, str]:
    """Every entity type that Presidio's shipped recognizers find without a model, and who finds it."""
    return {str(entity): type(r).__name__ for r in recognizers() for entity in r.supported_entities}
