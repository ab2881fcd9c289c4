"""A request and a choice of its reply, as the case that a judge or a reviser is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policies.critique import Case

SHOWN = ("content", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call")


def case_of(conversation: Sequence[Mapping[str, Any]], choice: Mapping[str, Any]) -> Case:
    """A choice of a completion object, chat or plain, as a case: all of it that the caller would get."""
    said = choice.get("message")
    if isinstance(said, dict):
        return Case(conversation, {key: said[key] for key in SHOWN if said.get(key)})
    return Case(conversation, {"content": choice.get("text") or ""})


def turns_of_prompt(prompt: str | Sequence[str], at: int) -> list[dict[str, Any]]:
    """A plain completion's prompt (of several, the one at `at`) as a conversation."""
    return [{"role": "user", "content": prompt if isinstance(prompt, str) else prompt[at]}]


def turns_of_chat(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of a chat request, with texts and tool calls. Images and the like are named, not shown."""
    turns = []
    for message in payload["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(part.get("text") or f"[{part.get('type')}]" for part in content)
        calls = {key: message[key] for key in ("tool_calls", "function_call") if message.get(key)}
        turns.append({"role": message["role"], "content": content or "", **calls})
    return turns
