"""The pages' files: read once, sent with headers that let a browser run nothing but them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from service.http import Header, Scope, Send, header, send_response
from service.openai.errors import MethodNotAllowed, NotFound

FOLDER = Path(__file__).parent / "static"
PAGES = frozenset({"", "login", "playground", "compare", "reviews", "experiments", "policies"})
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    b"trusted-types 'none'"
)
SAFETY: tuple[Header, ...] = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file as it is sent."""

    content: bytes
    type: bytes
    etag: bytes


class Files:
    """All of them, by their names under `/ui/static`."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): StaticFile(
                content := path.read_bytes(),
                TYPES[path.suffix],
                b'"%s"' % hashlib.sha256(content).hexdigest()[:24].encode(),
            )
            for path in sorted(folder.rglob("*"))
            if path.suffix in TYPES
        }

    async def answer(self, scope: Scope, send: Send) -> None:
        """A page or a file. Raises `NotFound`, `MethodNotAllowed`."""
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed(scope["method"], scope["path"], ("GET", "HEAD"))
        path = scope["path"].removeprefix("/ui").strip("/")
        name = "index.html" if path in PAGES else path.removeprefix("static/")
        file = self._files.get(name)
        if file is None or (name != "index.html" and not path.startswith("static/")):
            raise NotFound(f"there is nothing at {scope['path'][:200]}")
        scope["keel"].route = "/ui" if name == "index.html" else "/ui/static"
        headers = [*SAFETY, (b"etag", file.etag), (b"cache-control", b"no-cache")]
        if header(scope, b"if-none-match") == file.etag:
            await send_response(send, 304, b"", headers)
            return
        await send_response(send, 200, file.content, [(b"content-type", file.type), *headers])
