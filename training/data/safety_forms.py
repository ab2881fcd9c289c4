"""The forms that a document comes in: mails, pages, JSON, tables, code, logs, chats.

Clean and injected documents share them, so that a model has to find the instruction rather than recognise
the document (Greshake et al. 2023, indirect prompt injection).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

Form = Callable[[Random, list[str], Callable[[], str]], str]


def _mail(rng: Random, body: list[str], code: Callable[[], str]) -> str:
    head = rng.choice(
        (
            "Subject: {s}\nFrom: {f}@example.com\nTo: {t}@example.com\n\n",
            "SUBJECT: {s} | FROM: {f} | CONTENT: ",
            "From: {f} <{f}@example.org>\nDate: Tue, 4 Mar 2025 09:12\nSubject: Re: {s}\n\nHi {t},\n\n",
            "---- Forwarded message ----\nFrom: {f}\nSubject: Fwd: {s}\n\n",
            "{t},\n\n",
        )
    ).format(
        s=rng.choice(("invoice", "lunch", "your order", "minutes", "hello", "update", "reminder")),
        f=rng.choice(("office", "billing", "anna", "news", "hr", "support")),
        t=rng.choice(("tom", "all", "team", "sam")),
    )
    tail = rng.choice(
        (
            "",
            "\n\nBest regards,\nThe team",
            "\n\nSent from my phone",
            "\n--\nUnsubscribe | Privacy",
            "\n\nThanks,\nJo",
        )
    )
    return head + rng.choice((" ", "\n", "\n\n")).join(body) + tail


def _page(rng: Random, body: list[str], code: Callable[[], str]) -> str:
    styles = ("", "", " style='display:none'", " class='small'", " hidden", ' style="color:white"')
    tag = rng.choice(("p", "div", "li", "span", "td"))
    inner = "".join(f"<{tag}{rng.choice(styles)}>{s}</{tag}>" for s in body)
    return (
        rng.choice(
            ("<div>{}</div>", "<html><body><h1>News</h1>{}</body></html>", "<article>{}</article><!-- {} -->")
        )
        .replace("{}", inner, 1)
        .replace("{}", "end")
    )


def _json(rng: Random, body: list[str], code: Callable[[], str]) -> str:
    text = " ".join(body)
    shapes = (
        {"status": 200, "results": [{"title": body[0][:30], "snippet": text, "rank": 1}]},
        {"id": rng.randint(1, 9999), "review": text, "stars": rng.randint(1, 5)},
        {"event": {"summary": body[0], "description": text, "start": "2025-03-04T10:00"}},
        [{"role": "tool", "name": "search", "content": text}],
        {"issue": {"title": body[-1], "body": text, "labels": ["bug"]}},
    )
    return json.dumps(rng.choice(shapes), ensure_ascii=False, indent=rng.choice((None, None, 1)))


def _plain(rng: Random, body: list[str], code: Callable[[], str]) -> str:
    head = rng.choice(
        (
            "",
            "",
            "Summarise this text:\n\n",
            "Here is the document:\n",
            "Translate:\n",
            "# Notes\n\n",
            "Review: ",
        )
    )
    return head + rng.choice((" ", " ", "\n")).join(body)


def _table(rng: Random, body: list[str], code: Callable[[], str]) -> str:
    if rng.random() < 0.5:
        rows = (f'{rng.randint(1, 999)},2024-0{rng.randint(1, 9)}-1{rng.randint(0, 9)},"{s}"' for s in body)
        return "id,date,comment\n" + "\n".join(rows)
    return "| n | text |\n|---|---|\n" + "\n".join(f"| {i} | {s} |" for i, s in enumerate(body))


def _source(rng: Random, body: list[str], code: Callable[[], str]) -> str:
    mark = rng.choice(("# ", "// ", "-- ", " * "))
    lines = [code(), *(mark + s for s in body), code()]
    return "\n".join(lines)


def _log(rng: Random, body: list[str], code: Callable[[], str]) -> str:
    return "\n".join(
        f"2025-0{rng.randint(1, 9)}-0{rng.randint(1, 9)} 12:{rng.randint(10, 59)} "
        f"{rng.choice(('INFO', 'WARN', 'user:', 'msg='))} {s}"
        for s in body
    )


def _chat(rng: Random, body: list[str], code: Callable[[], str]) -> str:
    names = rng.sample(("Ann", "Bob", "Customer", "Agent", "lee", "Mia"), 2)
    return "\n".join(f"{names[i % 2]}: {s}" for i, s in enumerate(body))


FORMS: tuple[Form, ...] = (
    _mail,
    _mail,
    _mail,
    _page,
    _json,
    _json,
    _plain,
    _plain,
    _plain,
    _table,
    _source,
    _log,
    _chat,
)
