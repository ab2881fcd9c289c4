"""The gateway in front of a real vLLM, and OpenAI's own client in front of the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.service.threaded import threaded_gateway

GUARDS = r"""
input:
  - {guard: patterns, label: mail, patterns: [{name: EMAIL, regex: '[a-z]+@[a-z]+\.com'}], action: mask}
  - {guard: patterns, label: word, patterns: ['forbidden'], action: block}
output:
  - {guard: patterns, label: ssn, patterns: [{name: SSN, regex: '\b\d{3}-\d{2}-\d{4}\b'}], action: redact}
  - {guard: tool_calls, allow: [get_weather], action: block}
"""
# Every vowel is a finding: whatever a small model says, something is replaced.
VOWELS = """
output:
  - {guard: patterns, patterns: [{name: V, regex: '[aeiou]'}], action: redact, replacement: '*'}
"""
BLOCKED = "output:\n  - {guard: patterns, patterns: ['[a-zA-Z]{2}'], action: block}\n"


@pytest.fixture(scope="session")
def gateway_url(vllm_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = (
        f'model: {{upstream: {{base_url: "{vllm_server.base_url}/v1", model: {vllm_server.model}, '
        "api_key_env: KEEL_TEST_VLLM_KEY}}\n"
    )
    policies = {
        "open": model,
        "guarded": model + GUARDS,
        "vowels": model + VOWELS,
        "blocked": model + BLOCKED,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEEL_TEST_VLLM_KEY", vllm_server.api_key)
        with threaded_gateway(tmp_path_factory.mktemp("policies"), policies) as url:
            yield url


@pytest.fixture(scope="session")
def client(gateway_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway_url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client
