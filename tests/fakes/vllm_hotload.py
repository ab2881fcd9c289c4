"""A stand-in for vLLM's API server that loads nothing, for forcing what goes wrong while swapping.

`install(folder)` makes `python -m vllm.entrypoints.openai.api_server` run this file for a process whose
PYTHONPATH begins with `folder`. It answers with the name of the folder that answers, word for word anew, so
that a reply of two versions shows. What else it does is in the folder's name:

    …-broken   ends with an error while starting, or refuses the adapter
    …-mute     replies are empty
    …-unsure   log-probabilities are far lower
    …-nan      log-probabilities are no numbers
    …-loop     replies go in circles

The words of a stream come 30 ms apart; FAKE_VLLM_WORDS says how many. Starting takes FAKE_VLLM_START seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WORDS = int(os.environ.get("FAKE_VLLM_WORDS", "12"))
START = float(os.environ.get("FAKE_VLLM_START", "0"))
model = Path()
adapters: dict[str, Path] = {}


def install(folder: Path) -> dict[str, str]:
    """Put this module in vLLM's place under `folder`; returns the environment that makes it win."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for parent in (package, package.parent, package.parent.parent):
        (parent / "__init__.py").touch()
    shutil.copy(__file__, package / "api_server.py")
    return {"PYTHONPATH": str(folder)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(200, {})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        if self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.reply(401, {"error": "Unauthorized"})
            return
        path = urlsplit(self.path).path
        if path == "/v1/load_lora_adapter":
            self.load(body["lora_name"], Path(body["lora_path"]))
        elif path == "/v1/unload_lora_adapter":
            known = adapters.pop(body["lora_name"], None)
            self.reply(200 if known else 404, {})
        elif path in ("/pause", "/resume", "/reset_prefix_cache", "/collective_rpc"):
            self.manage(path, body)
        elif body.get("stream"):
            self.stream(body["model"])
        else:
            self.whole(body["model"])

    def load(self, name: str, path: Path) -> None:
        if name in adapters:
            self.reply(400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}})
        elif path.name.endswith("-broken"):
            self.reply(500, {"error": {"message": "the adapter is broken"}})
        else:
            adapters[name] = path
            self.reply(200, {})

    def manage(self, path: str, body: dict[str, Any]) -> None:
        global model
        if path == "/collective_rpc":
            model = Path(body["kwargs"]["weights_path"])
        self.reply(200, {"success": True})

    def who(self, asked: str) -> str:
        """The folder that answers at this moment."""
        return adapters.get(asked, model).name

    def whole(self, asked: str) -> None:
        who = self.who(asked)
        words = [] if who.endswith("-mute") else [f"{who}{i} " for i in range(WORDS)]
        if who.endswith("-loop"):
            words = ["la "] * 40
        logprob = -9.0 if who.endswith("-unsure") else float("nan") if who.endswith("-nan") else -0.5
        tokens = [{"token": word, "logprob": logprob, "bytes": None, "top_logprobs": []} for word in words]
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": len(words) + 1}
        self.reply(
            200, {"id": "x", "object": "chat.completion", "model": asked, "choices": [choice], "usage": usage}
        )

    def stream(self, asked: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(WORDS):
            last = i == WORDS - 1
            choice = {
                "index": 0,
                "delta": {"content": self.who(asked) + " "},
                "finish_reason": "stop" if last else None,
            }
            event = {"id": "x", "object": "chat.completion.chunk", "model": asked, "choices": [choice]}
            self.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            time.sleep(0.03)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def reply(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    global model
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--lora-modules", nargs="*", default=[])
    parser.add_argument("--enable-lora", action="store_true")
    options = parser.parse_known_args()[0]
    model = options.model
    time.sleep(START)
    adapters.update({name: Path(path) for name, _, path in (m.partition("=") for m in options.lora_modules)})
    if model.name.endswith("-broken"):
        print("RuntimeError: shapes do not match", file=sys.stderr, flush=True)
        raise SystemExit(3)
    Server(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
