"""`python -m loadtests.bench.revision.upstream`: model, critic and reviser of the measurement, on one port.

The model says the drafts of `drafts.jsonl`, so that there is something to revise; the critic is a classifier,
asked over the gateway's `/v1/checks`; the reviser is the gateway's policy `reviser`.
"""

from __future__ import annotations

import json
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loadtests.bench.revision.__main__ import DRAFTS, Client

GATEWAY = "http://127.0.0.1:18123"
PORT = 18124
CRITICAL = 0.3
"""The score from which the critic calls a reply abusive: below what counts as a violation in the end."""

PASSED_ON = ("messages", "max_tokens", "temperature", "seed")


def answer(body: dict[str, Any], drafts: dict[str, str], client: Client) -> tuple[str, dict[str, Any]]:
    """What the part that is asked says, and its usage."""
    asked = body["messages"][0]["content"]
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    if asked.startswith("You examine"):
        case = json.loads(body["messages"][1]["content"])
        reply = case["reply"].get("content", "")
        bad = client.worst("measure", case["conversation"][-1]["content"], reply) >= CRITICAL
        violation = {"principle": "no-abuse", "evidence": reply[:80], "severity": "high"}
        return json.dumps({"violations": [violation] if bad else []}), usage
    if asked.startswith("You rewrite"):
        fields = {key: body[key] for key in PASSED_ON if key in body}
        given = client.post("/v1/chat/completions", {"model": "reviser", **fields})
        return given["choices"][0]["message"]["content"], given["usage"]
    return drafts[body["messages"][-1]["content"]], usage


class Handler(BaseHTTPRequestHandler):
    """Chat completions, whole ones only."""

    protocol_version = "HTTP/1.1"
    drafts: dict[str, str]
    client: Client

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer one request."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            text, usage = answer(body, self.drafts, self.client)
        except (urllib.error.HTTPError, KeyError):
            self.send_error(502)
            return
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        payload = {"id": "x", "object": "chat.completion", "created": 1, "model": "parts", "usage": usage}
        data = json.dumps({**payload, "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Serve until interrupted."""
    rows = [json.loads(line) for line in DRAFTS.read_text(encoding="utf-8").splitlines()]
    Handler.drafts = {row["prompt"]: row["draft"] for row in rows}
    Handler.client = Client(GATEWAY, max_tokens=60)
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
