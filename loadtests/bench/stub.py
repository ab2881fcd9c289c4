"""Upstreams that cost nothing: nginx with a canned reply, for throughput and overhead."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from loadtests.bench.processes import LOAD_CORE, BenchError, Server, free_port, serve

WORDS = (
    "The garden behind the house was quiet in the morning and the old gate stood open while a few birds "
    "looked for crumbs near the kitchen door and nobody hurried because the train would not leave before "
    "noon and there was time for tea and for a walk along the river to the mill where the path turns back"
).split()

_CONF = """
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 3600s; default_type application/json;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi; client_body_buffer_size 64k;
  server {{
    listen 127.0.0.1:{port} reuseport;
    location = /v1/chat/completions {{ return 200 '{reply}'; }}
    location / {{ return 200 '{{"object":"list","data":[{{"id":"mock","object":"model"}}]}}'; }}
  }}
}}
"""


def words(count: int) -> str:
    """`count` words of plain prose."""
    return " ".join(WORDS[i % len(WORDS)] for i in range(count))


def canned_reply(tokens: int, *, fresh: bool = False) -> bytes:
    """A chat completion of `tokens` one-word tokens, without an apostrophe (nginx quotes with it).

    With `fresh` its first and last word are a number that nginx makes anew for each reply.
    """
    text = words(tokens)
    if fresh:
        number = "$connection$connection_requests"
        text = f"{number} {words(tokens - 2)} {number}"
    message = {"role": "assistant", "content": text}
    body = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": 12 + tokens},
    }
    return json.dumps(body).encode()


@contextlib.contextmanager
def nginx_stub(home: Path, *, tokens: int = 64, fresh: bool = False) -> Iterator[Server]:
    """nginx on a free loopback port, on the load's core, answering every chat with the same reply.

    With `fresh` no two replies are alike, so that no guard knows a verdict from the last one.
    """
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        raise BenchError("nginx is missing; on Debian: apt-get install nginx-light")
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    conf = home / "nginx.conf"
    conf.write_text(_CONF.format(home=home, port=port, reply=canned_reply(tokens, fresh=fresh).decode()))
    argv = [nginx, "-p", str(home), "-c", str(conf)]
    with serve(argv, port=port, ready="/", log=home / "nginx.log", core=LOAD_CORE) as server:
        yield server
