"""Closed-loop load through wrk (a C program, so that the load is never the bottleneck)."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.processes import LOAD_CORE, BenchError

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
for name, value in pairs({headers}) do wrk.headers[name] = value end
wrk.body = [==[{body}]==]
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {{"requests":%d,"us":%d,"errors":%d,"p50":%f,"p99":%f}}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw: requests per second, latencies in milliseconds, failed requests."""

    rate: float
    p50_ms: float
    p99_ms: float
    requests: int
    errors: int


def chat_body(model: str, prompt: str) -> bytes:
    """A non-streaming chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}]}).encode()


def load(
    url: str, body: bytes, *, callers: int, seconds: float, home: Path, headers: dict[str, str] | None = None
) -> Load:
    """`callers` connections, each sending its next request when the last was answered, for `seconds`.

    Raises `BenchError` when wrk is missing or any request failed: a rate with errors in it means nothing.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise BenchError("wrk is missing; on Debian: apt-get install wrk")
    home.mkdir(parents=True, exist_ok=True)
    table = "{" + ",".join(f"[{json.dumps(k)}]={json.dumps(v)}" for k, v in (headers or {}).items()) + "}"
    script = home / "post.lua"
    script.write_text(_SCRIPT.format(body=body.decode(), headers=table))
    argv = ["taskset", "-c", str(LOAD_CORE), wrk, "-t1", f"-c{callers}", f"-d{seconds:g}s", "-s", str(script)]
    done = subprocess.run(  # noqa: S603 - the benchmark's own command line
        [*argv, f"{url}/v1/chat/completions"],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise BenchError(f"wrk gave no result: {done.stdout}\n{done.stderr}")
    seen = json.loads(line.removeprefix("RESULT "))
    if seen["errors"]:
        raise BenchError(f"{seen['errors']} of {seen['requests']} requests to {url} failed")
    return Load(
        rate=seen["requests"] / (seen["us"] / 1e6),
        p50_ms=seen["p50"] / 1e3,
        p99_ms=seen["p99"] / 1e3,
        requests=seen["requests"],
        errors=seen["errors"],
    )
