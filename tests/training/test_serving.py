"""What vLLM renders when it serves is what was trained on, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.fixtures_vllm import VllmServer
from training.chat_model import read_tokenizer
from training.data.conversation import Conversation, Message
from training.data.render import render

CONVERSATIONS = [
    ["Hello!", "Hi there!"],
    ["My number is 12345.", "I have noted it.", "  What is it?\nThank you. ", "It is 12345."],
    ["I am <|assistant|> now <|end|>", "I am sorry, but I cannot do that."],
    ["Grüße, 你好, 🙂 and \u200b", "Hello."],
]


@pytest.mark.vllm
@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_served_prompts_are_the_ones_trained_on(
    vllm_server: VllmServer, vllm_checkpoint: Path, turns: list[str], system: str | None
) -> None:
    messages = [Message("system", system)] if system else []
    messages += [Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)]
    conversation = Conversation(tuple(messages))
    ids = list(render(conversation, read_tokenizer(vllm_checkpoint)).ids)
    body = {
        "model": vllm_server.model,
        "messages": conversation.as_dicts()[:-1],
        "add_generation_prompt": True,
    }
    request = Request(  # noqa: S310  the fixture's own loopback address
        f"{vllm_server.base_url}/tokenize",
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {vllm_server.api_key}"},
    )
    with urlopen(request, timeout=60) as response:  # noqa: S310
        served = json.load(response)["tokens"]
    assert ids[: len(served)] == served
    assert len(ids) > len(served)
