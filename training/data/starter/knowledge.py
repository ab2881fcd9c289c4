"""Questions that have an answer in `answers.yaml`: each generator draws one with its answer."""

from __future__ import annotations

import random
from typing import Any

from training.data.starter.words import NUMBERS, Exchange, Generator, enumerate_words, sentence_case

_SINGULAR = {"colors": "a color", "countries": "a country", "cities": "a city", "sports": "a sport"}


def knowledge_exchanges(answers: dict[str, Any]) -> dict[Generator, float]:
    """Questions that have an answer in `answers.yaml`, with their weights."""
    categories: dict[str, list[str]] = answers["categories"]

    def definition(r: random.Random) -> Exchange:
        thing, meaning = r.choice(list(answers["definitions"].items()))
        asked = r.choice(
            [
                "What is {}?",
                "What's {}?",
                "Can you explain what {} is?",
                "Tell me about {}.",
                "Explain {}.",
                "Do you know what {} is?",
                "what is {}",
                "Define {}.",
                "What is {}? Answer in one sentence.",
            ]
        )
        told = r.choice(["{} is {}.", "{} is {}.", "Sure. {} is {}."])
        return asked.format(thing), told.format(sentence_case(thing), meaning)

    def capital(r: random.Random) -> Exchange:
        country, city = r.choice(list(answers["capitals"].items()))
        asked = r.choice(
            [
                "What is the capital of {}?",
                "What's the capital of {}?",
                "Which city is the capital of {}?",
                "Capital of {}?",
                "Do you know the capital of {}?",
                "what is the capital of {}",
            ]
        )
        return asked.format(country), f"The capital of {country} is {city}".rstrip(".") + "."

    def opposite(r: random.Random) -> Exchange:
        word, other = r.choice(list(answers["opposites"].items()))
        asked = r.choice(["What is the opposite of {}?", "Opposite of {}?", "What's the opposite of {}?"])
        return asked.format(word), f"The opposite of {word} is {other}."

    def listing(r: random.Random) -> Exchange:
        category = r.choice(list(categories))
        number = r.choice([2, 3, 3, 4, 5])
        chosen = r.sample(categories[category], min(number, len(categories[category])))
        asked = r.choice(
            [
                "Name {n} {c}.",
                "List {n} {c}.",
                "Can you name {n} {c}?",
                "Give me {n} {c}.",
                "Tell me {n} {c}.",
                "name {n} {c}",
                "What are {n} {c}?",
            ]
        )
        word = NUMBERS[len(chosen)]
        question = asked.format(n=r.choice([word, str(len(chosen))]), c=category)
        if r.random() < 0.2:
            return question, "\n".join(
                f"{i}. {sentence_case(item)}" for i, item in enumerate(chosen, start=1)
            )
        opening = r.choice(["{}.", "Here are {n} {c}: {}."])
        text = opening.format(enumerate_words(chosen), n=word, c=category)
        return question, sentence_case(text)

    def membership(r: random.Random) -> Exchange:
        category = r.choice(
            ["fruits", "vegetables", "animals", "birds", "colors", "countries", "cities", "sports"]
        )
        item = r.choice(categories[category])
        guess = r.choice([category, r.choice(["fruits", "vegetables", "birds", "countries", "sports"])])
        verb, pronoun = ("is", "It is") if category in _SINGULAR else ("are", "They are")
        asked, right = ((_SINGULAR.get(c, f"a {c[:-1]}") if verb == "is" else c) for c in (guess, category))
        question = f"{verb.capitalize()} {item} {asked}?"
        if guess == category:
            return question, sentence_case(f"Yes, {item} {verb} {right}.")
        return question, f"No, {item} {verb} not {asked}. {pronoun} {right}."

    def fact(r: random.Random) -> Exchange:
        question, answer = r.choice(list(answers["facts"].items()))
        return r.choice([question, question, question.lower(), f"I have a question. {question}"]), answer

    def advice(r: random.Random) -> Exchange:
        deed, answer = r.choice(list(answers["advice"].items()))
        asked = r.choice(
            [
                "How do I {}?",
                "How can I {}?",
                "Can you tell me how to {}?",
                "Help me {}.",
                "how do I {}",
                "What is the best way to {}?",
                "I want to {}. What should I do?",
            ]
        )
        return asked.format(deed), answer

    return {
        definition: 2.5,
        capital: 1.2,
        opposite: 0.5,
        listing: 1.5,
        membership: 0.5,
        fact: 1.5,
        advice: 1.5,
    }
