"""A stand-in for vLLM's API server, for forcing the ways in which a child process fails.

`install(folder)` makes `python -m vllm.entrypoints.openai.api_server` run this file for a process whose
PYTHONPATH begins with `folder`. What it does is said by FAKE_VLLM, words separated by commas:

    exit            print a traceback and exit with code 3 before serving
    slow            take for ever to start
    port-taken      exit as vLLM does when its port is taken, the first time (needs FAKE_VLLM_STATE)
    die-young       exit with code 4 soon after it began to serve
    hang            stop answering soon after it began to serve, without exiting
    engine-dead     answer /health with 503 soon after it began to serve
    ignore-term     ignore SIGTERM
    engine-process  have a child process of its own, whose pid goes to FAKE_VLLM_STATE

Otherwise it serves: /health, and POSTs answered by a slow stream, while it logs what vLLM never should.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORDS = set(filter(None, os.environ.get("FAKE_VLLM", "").split(",")))
STATE = Path(os.environ.get("FAKE_VLLM_STATE", os.devnull))
SOON = 0.4
PREFIX = "(APIServer pid=1) INFO 11-20 11:17:10 "
serving_since = time.monotonic()


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
        late = time.monotonic() - serving_since > SOON
        if "hang" in WORDS and late:
            time.sleep(3600)
        self.reply(503 if "engine-dead" in WORDS and late else 200, b"{}")

    def do_POST(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.reply(401, b'{"error": {"message": "Unauthorized"}}')
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        prompt = json.loads(body)["messages"][0]["content"]
        print(f"{PREFIX}[request_logger.py:42] Received request: prompt: {prompt!r}")
        print("Traceback (most recent call last):")
        print(f'  File "/x/serving.py", line 7, in create\n    f({prompt})')
        print(f"ValueError: can't take {prompt}", flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in (f"pid {os.getpid()}", *["word"] * 20):
            self.chunk(b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}).encode() + b"\n\n")
            time.sleep(0.02)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def main() -> None:
    global serving_since
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    port = parser.parse_known_args()[0].port
    print(f"{PREFIX}[api_utils.py:286] non-default args: {sys.argv[1:]}")
    print(f"{PREFIX}[model.py:733] Resolved architecture: FakeForCausalLM", flush=True)
    if "ignore-term" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "engine-process" in WORDS:
        engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        STATE.write_text(str(engine.pid))
    if "slow" in WORDS:
        time.sleep(3600)
    if "exit" in WORDS:
        print("ValueError: the checkpoint is broken", file=sys.stderr, flush=True)
        raise SystemExit(3)
    if "port-taken" in WORDS and not STATE.exists():
        STATE.touch()
        print("OSError: [Errno 98] Address already in use", file=sys.stderr, flush=True)
        raise SystemExit(1)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    serving_since = time.monotonic()
    if "die-young" in WORDS:
        threading.Timer(SOON, os._exit, [4]).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
