"""The pii guard with the real Presidio in a real worker, and with names from the embedded checkpoint."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.checks import pii
from guardrails.checks.pii import PiiGuard
from guardrails.classifier import Entity, Output
from guardrails.clusters import ClusterSearch
from guardrails.guard import Context
from guardrails.pii_entities import DEFAULT, KNOWN, NAMED, QUICK, RECOGNIZED
from guardrails.scan import PatternSet, StreamPattern
from guardrails.stream import Moderator
from guardrails.verdict import Action
from policies.spec import PiiSpec
from tests.guardrails import pii_texts
from tests.guardrails.conftest import Workers

pytestmark = pytest.mark.xdist_group("guard-workers")
PATTERNS_ONLY = tuple(sorted(set(DEFAULT) - NAMED))
ADDITIONS = ["Maria Gonzalez", "\u200b", "’", "Berlin", "é", "4111", "@", "."]
PIECES = [*"a bc bc1 4 078-05-1121 - . : :: ( + @ x@y.de DE89 é / # _".split(), " ", "\n", "3704 0044"]
PROSE = (
    "Well, I think that the capital of France is Paris, which lies on the river Seine. It is known for its "
    "museums; the most famous of them is the Louvre. You might also enjoy a long walk in the evening!\n"
)


def guard(workers: Workers, **settings: Any) -> PiiGuard:
    return pii.build(PiiSpec(**settings), workers.environment)


def moderated(workers: Workers, text: str, stage: Any = "output", **settings: Any) -> str:
    return workers.moderate(Moderator([guard(workers, **settings)], Context(stage=stage)), text)


@cache
def presidio() -> Any:
    """The servable, in this process."""
    from guardrails import presidio

    return presidio.serve()


@cache
def analyzer() -> Any:
    """Presidio's own engine with the same recognizers, to compare with: it looks at whole texts."""
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry

    from guardrails.presidio import recognizers

    every = list(recognizers())
    for recognizer in every:
        recognizer.supported_language = "en"
    registry = RecognizerRegistry(recognizers=every, supported_languages=["en"])
    return AnalyzerEngine(registry=registry, nlp_engine=presidio()._engine, supported_languages=["en"])


Results = set[tuple[str, int, int, float]]


def by_guard(checked: PiiGuard, text: str) -> Results:
    jobs = checked.examine(Context()).advance(text, True).jobs
    findings = [f for job in jobs for f in job.read(presidio().predict([job.payload])[0]).findings]
    return {(f.entity_type, f.start, f.end, round(f.score, 3)) for f in findings}


def by_presidio(text: str, entities: tuple[str, ...]) -> Results:
    results = analyzer().analyze(text, "en", entities=list(entities), score_threshold=0.4)
    return {(r.entity_type, r.start, r.end, round(r.score, 3)) for r in results}


class TestAgreementWithPresidio:
    def test_every_recognizer_is_known_and_nothing_else(self) -> None:
        from guardrails.presidio import supported_entities

        assert supported_entities().keys() == RECOGNIZED
        assert set(DEFAULT) <= KNOWN
        assert QUICK <= RECOGNIZED

    @pytest.mark.parametrize(("entities", "seeds"), [(PATTERNS_ONLY, 250), (tuple(sorted(RECOGNIZED)), 60)])
    def test_the_same_results_as_on_the_whole_text(
        self, workers: Workers, entities: tuple[str, ...], seeds: int
    ) -> None:
        checked = guard(workers, entities=entities, ner="none")
        found = 0
        for seed in range(seeds):
            text = pii_texts.text(Random(seed))
            expected = by_presidio(text, entities)
            assert by_guard(checked, text) == expected, text
            found += len(expected)
        assert found > seeds  # the texts do hold something

    def test_texts_that_are_not_ascii_lose_nothing(self, workers: Workers) -> None:
        checked = guard(workers, entities=PATTERNS_ONLY, ner="none")
        random = Random(7)
        for seed in range(80):
            text = pii_texts.text(Random(seed))
            at = random.randint(0, len(text))
            text = text[:at] + random.choice(["é", "’", "—", "ж", "，", "\u00a0"]) + text[at:]
            missing = by_presidio(text, PATTERNS_ONLY) - by_guard(checked, text)
            assert not missing, text


class TestStreaming:
    @settings(max_examples=150)
    @given(
        st.integers(0, 10_000),
        st.lists(st.sampled_from(ADDITIONS), max_size=3),
        st.lists(st.floats(0, 1), max_size=12),
        st.randoms(use_true_random=False),
    )
    def test_however_it_is_cut_the_same_text_goes_out(
        self, workers: Workers, seed: int, additions: list[str], fractions: list[float], random: Random
    ) -> None:
        text = pii_texts.text(Random(seed))[:220]
        for addition in additions:
            at = random.randint(0, len(text))
            text = text[:at] + addition + text[at:]
        checked = guard(workers)
        whole = Moderator([checked], Context())
        expected = workers.moderate(whole, text)
        moderator = Moderator([checked], Context())
        for released in workers.released(moderator, text, fractions, random):
            assert expected.startswith(released)
        assert released == expected
        assert moderator.verdict == whole.verdict
        assert not moderator.verdict.failures

    @given(st.data())
    @settings(max_examples=60)
    def test_prose_that_is_not_searched_holds_nothing(self, workers: Workers, data: st.DataObject) -> None:
        """`QUICK` is a claim about Presidio's expressions: with and without it the same groups are found."""
        text = "".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=14)))
        patterns, after = quick_patterns(workers)
        cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {len(text)})
        groups: list[list[Any]] = [[], []]
        for kind, quick in enumerate((False, True)):
            search = ClusterSearch(patterns, after, quick)
            for cut in cuts:
                groups[kind] += search.advance(text[:cut], cut == len(text))[0]
        assert groups[0] == groups[1]

    def test_prose_asks_for_nothing_but_its_names(self, workers: Workers) -> None:
        examination = guard(workers).examine(Context())
        servables = set()
        for end in range(1, len(PROSE) + 1):
            servables |= {job.servable for job in examination.advance(PROSE[:end], False).jobs}
        assert servables == {guard(workers).names.name}  # type: ignore[union-attr]

    def test_prose_is_held_back_by_the_current_word_only(self, workers: Workers) -> None:
        examination = guard(workers, ner="none").examine(Context())
        for end in range(1, len(PROSE) + 1):
            step = examination.advance(PROSE[:end], False)
            assert not step.jobs
            assert step.settled >= max(PROSE.rfind(space, 0, end) for space in " \n") + 1

    def test_what_is_asked_is_a_function_of_the_text(self, workers: Workers) -> None:
        text = PROSE * 3 + "mail jane@example.com, SSN 078-05-1120 (card 4111 1111 1111 1111)."
        asked = []
        for step in (1, 7, len(text)):
            examination = guard(workers).examine(Context())
            jobs = []
            for end in [*range(step, len(text), step), len(text)]:
                jobs += examination.advance(text[:end], end == len(text)).jobs
            names = {(j.start, j.end, j.payload) for j in jobs if j.servable != "presidio:en"}
            clusters = {cluster for j in jobs if j.servable == "presidio:en" for cluster in j.payload}
            asked.append((names, clusters))
        assert asked[0] == asked[1] == asked[2]


@cache
def quick_patterns(workers: Workers) -> tuple[PatternSet, tuple[int, ...]]:
    described = [c for c in workers.runtime.describe("presidio:en") if c.entity_type in QUICK]
    patterns = PatternSet([StreamPattern.compile(c.source, c.entity_type) for c in described])
    return patterns, tuple(c.after for c in described)


def test_a_text_full_of_personal_data_takes_few_jobs(workers: Workers) -> None:
    text = "".join(f"user{index}@example.com, " for index in range(300))
    jobs = guard(workers, ner="none").examine(Context()).advance(text, True).jobs
    assert len(jobs) == 5
    cleaned = moderated(workers, text, ner="none")
    assert cleaned == "<EMAIL_ADDRESS>, " * 300


def test_endless_digits_are_not_judged_and_fail_closed(workers: Workers) -> None:
    moderator = Moderator([guard(workers, ner="none")], Context())
    assert workers.moderate(moderator, "Here: " + "1 " * 15_000) == ""
    assert {failure.reason for failure in moderator.verdict.failures} == {"overloaded"}


class TestActions:
    TEXT = "Mail jane.doe@example.com now."

    def test_redact_names_what_was_there(self, workers: Workers) -> None:
        assert moderated(workers, self.TEXT) == "Mail <EMAIL_ADDRESS> now."

    def test_hash_is_keyed_and_the_same_for_the_same_value(self, workers: Workers) -> None:
        text = "a@example.com b@example.com a@example.com"
        first, second, third = moderated(workers, text, action="hash").split()
        assert first == third != second
        assert first.startswith("[EMAIL_ADDRESS:")

    def test_block_cuts_at_the_finding(self, workers: Workers) -> None:
        moderator = Moderator([guard(workers, action="block")], Context())
        assert workers.moderate(moderator, self.TEXT) == "Mail "
        assert moderator.verdict.action == Action.BLOCK

    def test_allow_reports_and_changes_nothing(self, workers: Workers) -> None:
        moderator = Moderator([guard(workers, action="allow")], Context())
        assert workers.moderate(moderator, self.TEXT) == self.TEXT
        (finding,) = moderator.verdict.findings
        assert (finding.entity_type, self.TEXT[finding.start : finding.end]) == (
            "EMAIL_ADDRESS",
            "jane.doe@example.com",
        )

    def test_mask_leaves_the_placeholder_to_the_request(self, workers: Workers) -> None:
        moderator = Moderator([guard(workers, action="mask")], Context(stage="input"))
        workers.moderate(moderator, self.TEXT)
        (finding,) = moderator.verdict.findings
        assert finding.mask
        assert finding.action == Action.REDACT

    def test_allowed_values_pass(self, workers: Workers) -> None:
        assert moderated(workers, self.TEXT, allow_list=("jane.doe@example.com",)) == self.TEXT

    def test_thresholds_and_context_words(self, workers: Workers) -> None:
        bare, told = "It was 078051121 then.", "My social security number: 078051121"
        assert moderated(workers, bare, entities=("US_SSN",)) == bare
        assert moderated(workers, told, entities=("US_SSN",)) == "My social security number: <US_SSN>"
        assert moderated(workers, told, entities=("US_SSN",), threshold=0.5) == told


class TestDisguises:
    @pytest.mark.parametrize(
        ("text", "clean"),
        [
            ("mail ja\u200bne@exam\u200bple.com now", "mail <EMAIL_ADDRESS> now"),
            ("mail ｊａｎｅ＠ｅｘａｍｐｌｅ．ｃｏｍ now", "mail <EMAIL_ADDRESS> now"),
            ("card 4111\u00a01111\u20111111\u20111111 ok", "card <CREDIT_CARD> ok"),
            ("ssn 078\u201105\u20111121.", "ssn <US_SSN>."),
            ("see(jane@example.com)there", "see(<EMAIL_ADDRESS>)there"),
            ("\ud800 my email: jane@example.com \udfff", "\ud800 my email: <EMAIL_ADDRESS> \udfff"),
            ("почта иван@пример.рф тут", "почта <EMAIL_ADDRESS> тут"),
        ],
    )
    def test_spans_are_those_of_the_original(self, workers: Workers, text: str, clean: str) -> None:
        assert moderated(workers, text, entities=("EMAIL_ADDRESS", "CREDIT_CARD", "US_SSN")) == clean


class TestNames:
    def test_the_embedded_checkpoint_finds_people_and_places(self, workers: Workers) -> None:
        text = "Please write to Maria Gonzalez, who lives in Berlin with her mother."
        assert (
            moderated(workers, text) == "Please write to <PERSON>, who lives in <LOCATION> with her mother."
        )
        people = moderated(workers, text, stage="input", entities=("PERSON",))
        assert people == "Please write to <PERSON>, who lives in Berlin with her mother."
        assert moderated(workers, text, ner="none") == text

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("I", None),
            ("Monday", None),
            ("42", None),
            ("x@y", None),
            ("one two three four five six seven", None),
            ("(Jane's", "Jane"),
            ("Ana", "Ana"),
            ("Dr. Li,", "Dr. Li"),
            ("李明", "李明"),
        ],
    )
    def test_what_cannot_be_a_person(self, text: str, value: str | None) -> None:
        span = pii.plausible("PERSON", text, 0, len(text))
        assert (text[slice(*span)] if span else None) == value

    def test_an_entity_counts_for_the_piece_that_it_is_in(self, workers: Workers) -> None:
        checked = guard(workers)
        text = "A first sentence that is long enough to stand by itself, really. Then Ana came in."
        first, second = (j for j in checked.examine(Context()).advance(text, True).jobs)
        assert (first.end, second.end) == (second.start, len(text))
        at = second.payload.text.index("Ana")
        before, within = Entity("PERSON", 0, 5, 0.9), Entity("PERSON", at, at + 3, 0.9)
        answer = second.read(Output(entities=(before, within)))
        assert [(text[f.start : f.end]) for f in answer.findings] == ["Ana"]
        assert second.read(Output(entities=(Entity("PERSON", at, at + 300, 0.9),))).findings == []


class TestSettings:
    def test_unknown_entities_are_named_with_what_is_known(self, workers: Workers) -> None:
        with pytest.raises(ValueError, match=r"'EMAIL'.*EMAIL_ADDRESS"):
            guard(workers, entities=("EMAIL",))
        spec = PiiSpec(entities=("US_SNN", "PERSON"), ner="none")
        first, second = pii.problems(spec, workers.environment)
        assert first.loc == ("entities", 0)
        assert "did you mean US_SSN?" in first.message
        assert second.loc == ("entities", 1)
        assert "'ner'" in second.message
        assert list(pii.problems(PiiSpec(), workers.environment)) == []

    def test_a_model_for_names_that_is_not_there(self, workers: Workers) -> None:
        (problem,) = pii.problems(PiiSpec(ner="/nowhere/at-all"), workers.environment)
        assert problem.loc == ("ner",)

    def test_presidio_that_does_not_run_fails_closed(self, workers: Workers) -> None:
        checked = guard(workers, ner="none", language="de")
        moderator = Moderator([checked], Context())
        assert workers.moderate(moderator, "Mail a@example.com") == ""
        assert [f.action for f in moderator.verdict.failures] == [Action.BLOCK]

    def test_scope_and_servables_follow_from_what_is_looked_for(self, workers: Workers) -> None:
        assert guard(workers, ner="none").scope == "pattern"
        assert guard(workers, ner="none").servables == {"presidio:en"}
        assert guard(workers).scope == "segment"
        only_names = guard(workers, entities=("PERSON",))
        assert "presidio:en" not in only_names.servables


class TestPresidioServable:
    def test_nothing_goes_online(self) -> None:
        code = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("went online")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from guardrails.pii_wire import Candidate, Cluster
from guardrails.presidio import serve
servable = serve()
places = [i for i, c in enumerate(servable.describe()) if c.entity_type == "EMAIL_ADDRESS"]
found = servable.predict([(Cluster("to a@example.co.uk", (Candidate(places[0], 3, 18),), 0.4),)])
assert found[0][0][0].entity_type == "EMAIL_ADDRESS", found
import sys
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

    def test_the_vocabulary_does_not_grow(self) -> None:
        from guardrails.pii_wire import Candidate, Cluster

        servable = presidio()
        place = next(i for i, c in enumerate(servable.describe()) if c.entity_type == "EMAIL_ADDRESS")

        def judge(word: str) -> None:
            window = f"{word}xyz {word}abc a@example.com"
            servable.predict([(Cluster(window, (Candidate(place, 18, 31),), 0.0),)])

        judge("first")
        before = len(list(servable._nlp.vocab)), len(servable._nlp.vocab.strings)
        for index in range(50):
            judge(f"w{index:04}")
        assert (len(list(servable._nlp.vocab)), len(servable._nlp.vocab.strings)) == before


def test_the_gateway_imports_no_model_library() -> None:
    code = """
import sys
import guardrails.checks.pii, guardrails.checks.toxicity, guardrails.checks.injection, guardrails.runtime
heavy = {"torch", "transformers", "presidio_analyzer", "spacy", "onnxruntime", "numpy", "phonenumbers"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
