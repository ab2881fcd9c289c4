"""What a guard does about what it finds: from a policy's `action` to the findings that carry it out."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from guardrails.verdict import Action, Finding
from policies.spec import ActionName

_ACTIONS = {
    "allow": Action.ALLOW,
    "log": Action.ALLOW,
    "redact": Action.REDACT,
    "mask": Action.REDACT,
    "hash": Action.REDACT,
    "rewrite": Action.REWRITE,
    "escalate": Action.ESCALATE,
    "block": Action.BLOCK,
}

HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Remedy:
    """Makes a guard's findings.

    log:    the text stays; the finding is told in the gateway's log too.
    redact: the span becomes `replacement`, or the kind of thing it was: `[EMAIL_ADDRESS]`.
    rewrite: it becomes `replacement`.
    mask:   it becomes a placeholder of the request's vault, put back in the reply.
    hash:   it becomes a keyed digest (HMAC-SHA-256, 64 bits of it): equal values stay recognisable as
            equal, and who lacks the key can't find them by trying.
    """

    kind: ActionName
    hash_key: bytes = field(repr=False, default=b"")
    replacement: str | None = None
    penalty: float = 0.0

    @property
    def action(self) -> Action:
        return _ACTIONS[self.kind]

    @property
    def changes_text(self) -> bool:
        return self.action in (Action.REDACT, Action.REWRITE)

    def finding(self, guard: str, entity_type: str, start: int, end: int, score: float, text: str) -> Finding:
        """The finding for `text[start:end]`."""
        return Finding(
            start=start,
            end=end,
            guard=guard,
            entity_type=entity_type,
            score=score,
            action=self.action,
            replacement=self._replacement(entity_type, text[start:end]),
            mask=self.kind == "mask",
            log=self.kind == "log",
            penalty=self.penalty,
        )

    def _replacement(self, entity_type: str, value: str) -> str | None:
        if self.kind == "redact":
            return f"[{entity_type}]" if self.replacement is None else self.replacement
        if self.kind == "hash":
            message = f"{entity_type}\0{value}".encode("utf-8", "surrogatepass")
            digest = hmac.new(self.hash_key, message, hashlib.sha256).hexdigest()[:HASH_DIGITS]
            return f"[{entity_type}:{digest}]"
        return self.replacement if self.kind == "rewrite" else None
