"""The running gateway's admin API, as the command line asks it."""

from __future__ import annotations

import http.client
import ipaddress
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from service.settings import Settings

_CONNECT_SECONDS = 5.0
_SWAP_SECONDS = 1_800.0  # a large checkpoint is read, hashed and loaded meanwhile


class Unreachable(Exception):
    """No gateway answers there."""


class GatewaySaysNo(Exception):
    """A gateway answers, but not this: the message says what to do."""


def ask_gateway(
    settings: Settings, url: str | None, what: str, body: Mapping[str, Any], tell: Callable[[str, str], None]
) -> dict[str, Any]:
    """Promote or roll back there; every step is told as it comes. Returns the outcome, as the API has it."""
    where = url or f"http://{_host(settings)}:{settings.port}"
    parts = urlsplit(where)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise GatewaySaysNo(f"--url must be http://host[:port], got {where!r}")
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = make(parts.hostname, parts.port, timeout=_CONNECT_SECONDS)
    try:
        connection.connect()
    except OSError as error:
        raise Unreachable(f"no gateway answers on {where} ({error.strerror or error})") from None
    try:
        connection.sock.settimeout(_SWAP_SECONDS)
        headers = {"content-type": "application/json", "accept": "application/x-ndjson"}
        if settings.admin_key is not None:
            headers["authorization"] = f"Bearer {settings.admin_key.get_secret_value()}"
        path = f"{parts.path.rstrip('/')}/admin/v1/checkpoints/{what}"
        connection.request("POST", path, json.dumps(body), headers)
        return _read(connection.getresponse(), where, tell)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise GatewaySaysNo(
            f"{where} broke off ({type(error).__name__}: {error}); `keel checkpoints list` shows what the "
            "alias means now"
        ) from error
    finally:
        connection.close()


def _host(settings: Settings) -> str:
    """Where a gateway of these settings can be reached from this machine."""
    host = settings.host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        host = "::1" if address.version == 6 else "127.0.0.1"
    return f"[{host}]" if address.version == 6 else host


def _read(response: http.client.HTTPResponse, where: str, tell: Callable[[str, str], None]) -> dict[str, Any]:
    if response.status in (401, 403):
        raise GatewaySaysNo(
            f"{where} asks for an admin key: set KEEL_ADMIN_KEY to one (`keel keys create ops --admin` makes "
            "one), or move the alias alone with --offline and let the gateway follow"
        )
    if response.status != 200:
        said = response.read(2_000).decode("utf-8", "replace")
        raise GatewaySaysNo(f"{where} answered {response.status}: {said}")
    for line in response:
        told = json.loads(line)
        if "step" not in told:
            return dict(told)
        tell(told["step"], told["seen"])
    raise ValueError("no outcome was told")
