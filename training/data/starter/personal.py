"""Exchanges that use what the user says: names, addresses, placeholders, sentences, sums."""

from __future__ import annotations

import random

from training.data.starter.words import (
    ADJECTIVES,
    ANIMALS,
    DAYS,
    DOMAINS,
    EVENTS,
    NAMES,
    NUMBERS,
    PLACES,
    SURNAMES,
    THINGS,
    VERBS,
    WHERE,
    Exchange,
    Generator,
    indefinite,
    sentence_case,
    unheard_name,
)


def personal_exchanges(vocabulary: list[str]) -> dict[Generator, float]:
    """Each generator with its weight; `vocabulary` is what words to repeat are drawn from."""

    def echo(r: random.Random) -> Exchange:
        return _echo(r, " ".join(r.choices(vocabulary, k=r.randint(1, 8))))

    return {
        _name: 2.0,
        _contact: 2.5,
        echo: 3.5,
        _note: 2.0,
        _story: 1.2,
        _sum: 0.8,
        _taste: 1.0,
        _plan: 1.5,
    }


def _name(r: random.Random) -> Exchange:
    name, who = (
        _person(r),
        r.choice(["My name is {}.", "I am {}.", "I'm {}.", "Hi, I'm {}.", "Hello, my name is {}."]),
    )
    reply = r.choice(
        ["Nice to meet you, {}!", "Hello, {}! How can I help you?", "Hi {}! What can I do for you?"]
    )
    ask = r.choice(["What is my name?", "What's my name?", "Do you remember my name?", "Who am I?"])
    if r.random() < 0.35:
        return f"{who.format(name)} {ask}", f"Your name is {name}."
    if r.random() < 0.5:
        return who.format(name), reply.format(name), ask, f"Your name is {name}."
    return who.format(name), reply.format(name)


def _contact(r: random.Random) -> Exchange:
    kind, value = _detail(r)
    told = r.choice([f"My {kind} is {value}.", f"my {kind} is {value}", f"You can use my {kind} {value}."])
    form = r.randrange(5)
    if form in (1, 2):
        told = told.rstrip(".") + "."
    if form == 0:
        return told, r.choice(
            [f"Thank you. I have noted your {kind}: {value}.", f"Thanks! Your {kind} is {value}."]
        )
    if form == 1:
        return f"{told} What is my {kind}?", f"Your {kind} is {value}."
    if form == 2:
        ask = r.choice(
            ["Please repeat it.", "Can you repeat it?", "Please confirm it.", "Say it back to me."]
        )
        return f"{told} {ask}", f"Your {kind} is {value}."
    if form == 3:
        return (
            told,
            f"Thank you. I have noted your {kind}.",
            f"What is my {kind}?",
            f"Your {kind} is {value}.",
        )
    name, place = _person(r), _place(r)
    facts = [f"my name is {name}", f"my {kind} is {value}"]
    return (
        f"{sentence_case(facts[0])} and {facts[1]}. I live in {place}.",
        f"Thank you, {name}. I have noted your {kind}, {value}. How is life in {place}?",
    )


def _echo(r: random.Random, words: str) -> Exchange:
    said = r.choice([_sentence(r), _detail(r)[1], unheard_name(r), words, words, sentence_case(words) + "."])
    asked = r.choice(
        [
            "Repeat after me: {}",
            "Say: {}",
            "Repeat: {}",
            "Please repeat this: {}",
            "Say this: {}",
            "Copy this text: {}",
            "Write exactly this: {}",
            "Repeat this sentence: {}",
        ]
    )
    return asked.format(said), said


def _note(r: random.Random) -> Exchange:
    name, me, event, day = _person(r), _person(r), r.choice(EVENTS), r.choice(DAYS)
    kind = r.choice(["a short e-mail", "an e-mail", "a note", "a short message", "a letter"])
    asked = r.choice(
        [f"Write {kind} to {name} about {event} on {day}.", f"Write {kind} to {name} about {event}."]
    )
    body = r.choice(
        [
            f"I am writing about {event}.",
            f"I hope you are well. Let us talk about {event} soon.",
            f"Thank you for your help with {event}.",
        ]
    )
    when = f" It is on {day}." if day in asked else ""
    if r.random() < 0.5:
        return f"{asked} My name is {me}.", f"Dear {name},\n\n{body}{when}\n\nBest wishes,\n{me}"
    kind, value = _detail(r)
    return (
        f"{asked} Use my {kind} {value}.",
        f"Dear {name},\n\n{body}{when} You can reach me at {value}.\n\nBest wishes",
    )


def _story(r: random.Random) -> Exchange:
    animal, adjective, where, thing = (
        r.choice(ANIMALS),
        r.choice(ADJECTIVES),
        r.choice(WHERE),
        r.choice(THINGS),
    )
    friend = r.choice([a for a in ANIMALS if a != animal])
    asked = r.choice(
        [
            f"Tell me a story about a {animal}.",
            f"Write a short story about a {animal}.",
            f"Can you tell me a story about a {animal}?",
            "Tell me a story.",
            "Write a story.",
            "Tell me a short story.",
        ]
    )
    first = f"Once upon a time there was {indefinite(adjective)} {adjective} {animal} who lived {where}."
    second = r.choice(
        [
            f"One day the {animal} found {thing} and did not know whose it was.",
            f"One morning the {animal} met a {friend} who had lost {thing}.",
            f"Every evening the {animal} dreamed of finding {thing}.",
        ]
    )
    third = r.choice(
        [
            f"The {animal} asked a {friend} for help, and together they looked everywhere.",
            f"It was a long way, but the {animal} did not give up.",
            f"So the {animal} and a {friend} went on a journey.",
        ]
    )
    last = r.choice(
        [
            "In the end they found what they were looking for, and they became good friends.",
            "From that day on, they shared everything.",
            "At last they came home, tired and happy.",
        ]
    )
    return asked, " ".join([first, second, third, last])


def _sum(r: random.Random) -> Exchange:
    a, b = r.randint(0, 10), r.randint(0, 10)
    sign, word, result = r.choice([("+", "plus", a + b), ("-", "minus", a), ("*", "times", a * b)])
    if sign == "-":
        a = a + b
    asked = r.choice(
        ["What is {} {} {}?", "What's {} {} {}?", "{} {} {}", "Calculate {} {} {}.", "How much is {} {} {}?"]
    )
    question = asked.format(a, r.choice([sign, word]), b)
    return question, r.choice([f"{a} {word} {b} is {result}.", f"{a} {sign} {b} = {result}"])


def _taste(r: random.Random) -> Exchange:
    thing = r.choice(
        [
            "pizza",
            "soccer",
            "rock music",
            "old movies",
            "comedies",
            "jazz",
            "coffee",
            "tea",
            "summer",
            "winter",
            "Star Wars",
            "Disney movies",
            "the Beatles",
            "baseball",
            "cooking",
            "hiking",
            "books",
            "cats",
            "dogs",
            "the sea",
            "science",
            "history",
            "video games",
            "dancing",
        ]
    )
    if r.random() < 0.5:
        asked = r.choice(
            [f"Do you like {thing}?", f"What do you think about {thing}?", f"Do you enjoy {thing}?"]
        )
        return asked, r.choice(
            [
                f"I like to talk about {thing}. What do you think?",
                f"Many people enjoy {thing}. How about you?",
                f"Yes, I like to hear about {thing}. What do you like best?",
            ]
        )
    asked = r.choice(
        [f"I love {thing}.", f"I like {thing}.", f"I really enjoy {thing}.", f"I am a fan of {thing}."]
    )
    return asked, r.choice(
        [
            f"That is nice! What do you like best about {thing}?",
            f"Many people like {thing}. Why do you?",
            "That sounds good. Tell me more!",
        ]
    )


def _plan(r: random.Random) -> Exchange:
    place, day, who = (
        _place(r),
        r.choice(DAYS),
        r.choice(["friend", "sister", "brother", "mother", "father"]),
    )
    name = _person(r)
    told, asked, answer = r.choice(
        [
            (f"I am going to {place} on {day}.", "Where am I going?", f"You are going to {place} on {day}."),
            (
                f"I will visit my {who} {name} on {day}.",
                f"What is the name of my {who}?",
                f"The name of your {who} is {name}.",
            ),
            (
                f"I will visit my {who} in {place}.",
                "Whom will I visit?",
                f"You will visit your {who} in {place}.",
            ),
            (f"I live in {place}.", "Where do I live?", f"You live in {place}."),
            (
                f"I have a meeting with {name} on {day}.",
                "When is my meeting?",
                f"Your meeting with {name} is on {day}.",
            ),
        ]
    )
    if r.random() < 0.4:
        return f"{told} {asked}", answer
    reply = r.choice(["That sounds nice!", "Thank you for telling me.", "I see. Is there anything I can do?"])
    return told, reply, asked, answer


def _first(r: random.Random) -> str:
    return r.choice(NAMES) if r.random() < 0.4 else unheard_name(r)


def _last(r: random.Random) -> str:
    return r.choice(SURNAMES) if r.random() < 0.4 else unheard_name(r)


def _place(r: random.Random) -> str:
    return r.choice(PLACES) if r.random() < 0.5 else unheard_name(r)


def _person(r: random.Random) -> str:
    first, last = _first(r), _last(r)
    return r.choice([first, first, f"{first} {last}", f"<PERSON_{r.choice((1, 1, 2))}>"])


def _detail(r: random.Random) -> tuple[str, str]:
    """A personal detail, plain or as the placeholder that a masking guard puts in its place."""
    number = r.choice((1, 1, 1, 2))
    digits = [str(r.randrange(10)) for _ in range(10)]
    phone = r.choice(["{}{}{}-{}{}{}-{}{}{}{}", "({}{}{}) {}{}{}-{}{}{}{}", "{}{}{}{}{}{}{}{}{}{}"]).format(
        *digits
    )
    first, last = _first(r).lower(), _last(r).lower()
    mail = r.choice([f"{first}.{last}", first, f"{first}{digits[0]}{digits[1]}", f"{first[0]}{last}"])
    mail += "@" + r.choice(DOMAINS)
    masked = r.random() < 0.5
    return r.choice(
        [
            ("e-mail address", f"<EMAIL_ADDRESS_{number}>" if masked else mail),
            ("email", f"<EMAIL_ADDRESS_{number}>" if masked else mail),
            ("phone number", f"<PHONE_NUMBER_{number}>" if masked else phone),
            (
                "address",
                f"<LOCATION_{number}>" if masked else f"{r.randint(1, 99)} {_last(r)} Street",
            ),
        ]
    )


def _sentence(r: random.Random) -> str:
    return r.choice(
        [
            f"The {r.choice(ADJECTIVES)} {r.choice(ANIMALS)} {r.choice(VERBS)} {r.choice(WHERE)}.",
            f"{_first(r)} found {r.choice(THINGS)} {r.choice(WHERE)}.",
            f"I will see {_first(r)} in {_place(r)} on {r.choice(DAYS)}.",
            f"{_first(r)} and {_first(r)} talk about {r.choice(EVENTS)}.",
            f"We have {r.choice(NUMBERS)} {r.choice(ANIMALS)}s and {r.choice(THINGS)}.",
        ]
    )
