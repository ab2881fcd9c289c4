"""What every page must satisfy for those who can't see it well, can't use a mouse, or sit at a phone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

TOKENS = Path(__file__).parents[3] / "service/ui/static/tokens.css"

# Called by name in the page, without being put into it: its policy allows no script but its own.
SCRIPTS = Path(__file__).with_name("checks.js").read_text()


def ask(page: Page, what: str) -> Any:
    """What a function of `checks.js` says of the page as it is."""
    return page.evaluate(f"() => (() => {{ {SCRIPTS} }})().{what}()")


def check_page(page: Page) -> None:
    """Names, structure, and no sideways scrolling."""
    faults: list[str] = ask(page, "faults")
    if page.viewport_size is not None and page.viewport_size["width"] < 500:
        faults += ask(page, "narrow")
    assert not faults, "\n".join(faults)


def tab_through(page: Page, steps: int = 40) -> list[str]:
    """What Tab reaches, in order; each must be visible and show that it has the focus."""
    ask(page, "start")
    reached: list[str] = []
    for _ in range(steps):
        page.keyboard.press("Tab")
        found = ask(page, "focus")
        if found["body"] or found["name"] in reached[:1]:
            break
        assert found["ring"] and found["seen"], str(found)
        reached.append(found["name"])
    return reached


def colours() -> dict[str, tuple[str, str]]:
    """Every colour token, light and dark."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", TOKENS.read_text())
    return {name: (light, dark) for name, light, dark in pairs}


def contrast(first: str, second: str) -> float:
    """WCAG 2.2's contrast ratio of two colours such as `#0b5a72`."""
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
