"""What a policy lets be kept of its conversations: for feedback, and for review."""

from __future__ import annotations

from typing import Literal

from policies.base import Frozen

Keep = Literal["none", "text"]


class FeedbackSpec(Frozen):
    """Callers may say how good this policy's replies are (`POST /v1/feedback`).

    store: "none" keeps that a reply was given, by its id, and what was said of it, without any text; "text"
           keeps the conversation, the reply, comments and corrections too, personal data taken out. Only
           what is kept with its text can be trained on.
    """

    store: Keep = "none"


class ReviewSpec(Frozen):
    """What guards withheld waits for a person who upholds or overturns it.

    items: "withheld" is all of it, "escalated" what a guard asked to be looked at.
    store: whether the texts are kept for that, personal data taken out, or only what was found.
    """

    items: Literal["withheld", "escalated"] = "withheld"
    store: Keep = "none"
