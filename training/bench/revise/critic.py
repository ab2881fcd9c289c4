"""The rules judge behind HTTP, as a critic that any policy can name: `judge: {upstream: …}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from policies.constitution import Constitution
from training.data.preferences import as_prompt
from training.judge.rules import RulesJudge


@contextmanager
def serving(judge: RulesJudge, constitution: Constitution) -> Iterator[str]:
    """Answer critiques on a free port of 127.0.0.1 until the block ends; yields the base URL.

    It reads what `policies.critique` asks, and counts a word as a token.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = "".join(message["content"] for message in body["messages"])
            case = json.loads(body["messages"][-1]["content"])
            prompt = as_prompt(case["conversation"][-1]["content"])
            text = json.dumps(judge.critique(prompt, case["reply"].get("content", ""), constitution).row())
            usage = {"prompt_tokens": len(asked.split()), "completion_tokens": len(text.split())}
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            head = {"id": "critic", "object": "chat.completion", "created": 0, "model": body["model"]}
            data = json.dumps({**head, "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
