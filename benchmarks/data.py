"""Pairs for the benchmarks: made up with GSM8K's distribution of lengths, or GSM8K itself.

Speed depends on the lengths of the texts, not on their content. Prompts have 30 to 250 tokens and responses 50 to 350,
log-normally distributed like GSM8K's, before the chat template adds its own.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SPREAD = 0.45  # standard deviation of the logarithm
LONGEST_WORD = 8  # tokens

NAMES = ("Natalia", "Tom", "Betty", "Julie", "James", "Mark", "Alexis", "Ken", "Tina", "Randy")
THINGS = ("clips", "apples", "pages", "dollars", "cookies", "flowers", "minutes", "boxes", "cards")
SENTENCES = (
    "{name} bought {a} {things} and gave {b} of them to {other}.",
    "Each week {name} sells {a} {things} for ${b} each.",
    "{name} has {a} times as many {things} as {other}, who has {b}.",
    "So there are {a} + {b} = {sum} {things} left.",
    "How many {things} do {name} and {other} have altogether in {a} days?",
    "That is {a} * {b} = {product} {things} for {name}.",
)


class Lengths(NamedTuple):
    """Tokens of a text: minimum, median, maximum."""

    least: int
    typical: int
    most: int


class Sizes(NamedTuple):
    """Lengths of prompts and responses."""

    prompt: Lengths
    response: Lengths


GSM8K_LIKE = Sizes(Lengths(30, 60, 250), Lengths(50, 125, 350))
LONG = Sizes(Lengths(1000, 1000, 1008), Lengths(508, 508, 516))  # a pair has almost 2,048 tokens


class Pair(NamedTuple):
    """A prompt, its annotated response, and one in place of the opponent's."""

    prompt: str
    annotated: str
    synthetic: str


def made_up(count: int, tokens: Callable[[str], int], seed: int = 0, sizes: Sizes = GSM8K_LIKE) -> list[Pair]:
    """`count` pairs of made-up word problems, the same for the same seed.

    Args:
        count: number of pairs.
        tokens: number of tokens of a text: at most `LONGEST_WORD` for a word, and for a text the sum over its words.
        seed: of the words and lengths.
        sizes: bounds and medians of the lengths.
    """
    draw, tokens = random.Random(seed), functools.cache(tokens)  # words repeat
    lengths = (sizes.prompt, sizes.response, sizes.response)
    return [Pair(*(_text(draw, tokens, each) for each in lengths)) for _ in range(count)]


def gsm8k(folder: Path, count: int) -> list[Pair]:
    """The first `count` pairs of GSM8K, with the answer to another problem in place of the opponent's response.

    Args:
        folder: holds `gsm8k/train.jsonl`.
        count: number of pairs.
    """
    with (folder / "gsm8k" / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(count + 1), strict=False)]
    return [Pair(row["question"], row["answer"], other["answer"]) for row, other in itertools.pairwise(rows)]


def pairs(folder: Path | None, count: int, tokens: Callable[[str], int], sizes: Sizes = GSM8K_LIKE) -> list[Pair]:
    """GSM8K's pairs from `folder`, or made-up ones."""
    return gsm8k(folder, count) if folder else made_up(count, tokens, sizes=sizes)


def _text(draw: random.Random, tokens: Callable[[str], int], lengths: Lengths) -> str:
    drawn = draw.lognormvariate(math.log(lengths.typical), SPREAD)
    length = min(max(drawn, lengths.least), lengths.most - LONGEST_WORD)
    words: list[str] = []
    for word in _words(draw):
        words.append(word)
        length -= tokens(f" {word}")
        if length <= 0:
            break
    return " ".join(words)


def _words(draw: random.Random) -> Iterator[str]:
    while True:
        name, other = draw.sample(NAMES, 2)
        a, b = draw.randint(2, 99), draw.randint(2, 99)
        yield from (
            draw.choice(SENTENCES)
            .format(
                name=name,
                other=other,
                things=draw.choice(THINGS),
                a=a,
                b=b,
                sum=a + b,
                product=a * b,
            )
            .split()
        )
