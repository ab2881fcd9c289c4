"""Every call of `/admin`, in the audit log before it is answered."""

from __future__ import annotations

from service.audit import AuditLog, actor_of
from service.audit_chain import AuditError
from service.http import App, Call, MessageDict, Receive, Scope, Send, send_error
from service.openai.errors import ApiError, Unavailable

READING = frozenset({"GET", "HEAD", "OPTIONS"})


class AuditCalls:
    """Around `Authenticate`, so that those who were turned away are seen too.

    What changes something is answered once its record is on disk. While the log can't be written, nothing is
    changed: such calls get 503. Reading, and being turned away, may come in floods: those are folded.
    """

    def __init__(self, app: App, audit: AuditLog) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith("/admin/"):
            await self._app(scope, receive, send)
            return
        changes = scope["method"] not in READING
        if changes and self._audit.error is not None:
            raise Unavailable(f"nothing is changed unrecorded: {self._audit.error}", code="audit_unavailable")

        unrecorded: Unavailable | None = None

        async def recorded_send(message: MessageDict) -> None:
            nonlocal unrecorded
            if message["type"] == "http.response.start":
                unrecorded = await self._record(scope, message["status"])
                if unrecorded is not None:
                    await send_error(send, unrecorded)
            if unrecorded is None:
                await send(message)

        try:
            await self._app(scope, receive, recorded_send)
        except ApiError as error:
            call: Call = scope["keel"]
            if call.caller is None or not call.caller.admin:
                self._turned_away(scope, error.status)
            else:
                await self._record(scope, error.status)
            raise

    async def _record(self, scope: Scope, status: int) -> Unavailable | None:
        """What to answer instead, where the record of a change is not on disk."""
        call: Call = scope["keel"]
        method, path, actor = scope["method"], scope["path"], actor_of(call.caller)
        if method in READING:
            self._audit.fold("admin.read", actor=actor, subject=path, details={"status": status})
            return None
        details = {"method": method, "status": status, "request_id": call.id}
        self._audit.record("admin.call", actor=actor, subject=path, details=details)
        try:
            await self._audit.flush()
        except AuditError as error:
            message = f"the call was carried out (status {status}), but could not be recorded: {error}"
            return Unavailable(message, code="audit_unavailable")
        return None

    def _turned_away(self, scope: Scope, status: int) -> None:
        call: Call = scope["keel"]
        client = scope["client"][0] if scope.get("client") else None
        details = {"status": status, "client": client}
        self._audit.fold("admin.denied", actor=actor_of(call.caller), subject="/admin", details=details)
