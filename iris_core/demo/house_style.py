"""The demo's annotated set: small questions answered in one house style, generated from a seed.

Every answer is one short line of reasoning and a last line `Answer: <value>`:

    Convert 3 m to cm.                      1 m is 100 cm, so 3 m is 300 cm.
                                            Answer: 300 cm

The value is an exact function of the prompt and is always written the same way (unit symbols, ISO dates, `json.dumps`
spacing): two answers are the same if `ANSWER_PATTERN` captures the same text in both. Questions are easy and short, for
a 135M model on two CPU cores: in SmolLM2's tokens, prompts and responses have at most 35 each (`--tokenizer` prints
the lengths).

No prompt and no answer occurs twice, within or across the files. The held-out pairs are drawn first: they depend on
the seed and their own number, not on the number of training pairs.

    python -m iris_core.demo.house_style --seed 0 --train 320 --heldout 80 --out DIR

writes `DIR/pairs.jsonl` and `DIR/heldout.jsonl`, one object per line: id, kind, prompt, response, reference. The
reference is the value alone, for a verifier.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from iris_core.common.errors import ConfigError
from iris_core.demo.phrases import (
    CITIES,
    COUNTING_PROMPTS,
    DATE_PROMPTS,
    DAY_AFTER_PROMPTS,
    DAY_BEFORE_PROMPTS,
    EXTRACTION_PROMPTS,
    EXTREME_PROMPTS,
    EXTREME_WORDS,
    GOODS,
    MONTHS,
    NAMES,
    PERSON_TEXTS,
    PRODUCT_PROMPTS,
    PURCHASE_TEXTS,
    SORTING_PROMPTS,
    SUM_PROMPTS,
    THINGS,
    UNIT_PROMPTS,
    UNITS,
    WEEKDAYS,
)

TRAIN_PAIRS, HELDOUT_PAIRS, PROMPTS = 320, 80, 64  # of the demo
ANSWER_PATTERN = r"(?m)^Answer: (.+?)\s*$"
MAX_REDRAWS = 10_000  # repeats in a row after which a kind counts as exhausted
FIRST_DAY, LAST_DAY = date(1990, 1, 1), date(2029, 12, 31)


class Pair(NamedTuple):
    """One annotated example; the fields are the columns of the files."""

    id: str
    kind: str
    prompt: str
    response: str
    reference: str


def answer(reasoning: str, value: object) -> str:
    """Put a line of reasoning and a value into the house style."""
    return f"{reasoning}\nAnswer: {value}"


def units(rng: random.Random) -> tuple[str, str]:
    """Convert a metric or time quantity, up or down, by a factor exact in decimals."""
    large_name, large, small_name, small, factor = rng.choice(UNITS)
    halves = rng.randrange(4, 20, 2 if factor == 60 else 1)  # half units only of metric ones
    few, many = f"{halves / 2:g} {large}", f"{halves * factor // 2} {small}"
    given, source_name, wanted, target_name = few, large_name, many, small_name
    rule = f"1 {large} is {factor} {small}"
    if rng.random() < 0.5:
        given, source_name, wanted, target_name = many, small_name, few, large_name
        rule = f"{factor} {small} is 1 {large}"
    prompt = rng.choice(UNIT_PROMPTS).format(
        given=given,
        x=given.split()[0],
        source_name=source_name,
        target=wanted.split()[1],
        target_name=target_name,
    )
    return prompt, answer(f"{rule}, so {given} is {wanted}.", wanted)


def arithmetic(rng: random.Random) -> tuple[str, str]:
    """Compute a + b - c or a x b + c on small numbers; the result is never below zero."""
    if rng.random() < 0.5:
        a, b, c = rng.randint(5, 20), rng.randint(5, 20), rng.randint(1, 9)
        prompt, step, result = rng.choice(SUM_PROMPTS), a + b, a + b - c
        reasoning = f"{a} + {b} is {step}, and {step} - {c} is {result}."
    else:
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
        prompt, step, result = rng.choice(PRODUCT_PROMPTS), a * b, a * b + c
        reasoning = f"{a} x {b} is {step}, and {step} + {c} is {result}."
    return prompt.format(a=a, b=b, c=c), answer(reasoning, result)


def dates(rng: random.Random) -> tuple[str, str]:
    """Write a date in ISO form or, one time in three, count one to three weekdays on."""
    if rng.randrange(3) == 0:
        return weekday_step(rng)
    day = date.fromordinal(rng.randint(FIRST_DAY.toordinal(), LAST_DAY.toordinal()))
    month = MONTHS[day.month - 1]
    prompt = rng.choice(DATE_PROMPTS).format(day=day.day, month=month, year=day.year)
    reasoning = f"{month} is month {day.month:02} and the day is {day.day:02}."
    return prompt, answer(reasoning, day.isoformat())


def weekday_step(rng: random.Random) -> tuple[str, str]:
    """Find the weekday one to three days after or before another."""
    start, steps = rng.randrange(7), rng.randint(1, 3)
    forward = rng.random() < 0.5
    way, sign = ("on", 1) if forward else ("back", -1)
    passed = [WEEKDAYS[(start + sign * step) % 7] for step in range(1, steps + 1)]
    span = "1 day" if steps == 1 else f"{steps} days"
    prompts = DAY_AFTER_PROMPTS if forward else DAY_BEFORE_PROMPTS
    reasoning = f"Counting {way} from {WEEKDAYS[start]}: {', '.join(passed)}."
    return rng.choice(prompts).format(span=span, day=WEEKDAYS[start]), answer(reasoning, passed[-1])


def extraction(rng: random.Random) -> tuple[str, str]:
    """Extract a name and a city, or an item and its price in euros, from a sentence as JSON."""
    name, record = rng.choice(NAMES), dict[str, str | int]()
    if rng.random() < 0.5:
        record |= {"name": name, "city": rng.choice(CITIES)}
        text = rng.choice(PERSON_TEXTS).format(**record)
        reasoning = f"The name is {name} and the city is {record['city']}."
    else:
        record |= {"item": rng.choice(GOODS), "price": rng.randint(2, 99)}
        text = rng.choice(PURCHASE_TEXTS).format(name=name, **record)
        reasoning = f"The item is a {record['item']} and the price is {record['price']}."
    prompt = rng.choice(EXTRACTION_PROMPTS).format(keys=" and ".join(record), text=text)
    return prompt, answer(reasoning, json.dumps(record))


def sorting(rng: random.Random) -> tuple[str, str]:
    """Sort three different numbers below 100, rising or falling."""
    numbers = rng.sample(range(1, 100), 3)
    falling = rng.random() < 0.5
    first, last = ("largest", "smallest") if falling else ("smallest", "largest")
    a, b, c = numbers
    x, y, z = sorted(numbers, reverse=falling)
    prompt = rng.choice(SORTING_PROMPTS).format(a=a, b=b, c=c, first=first, last=last)
    return prompt, answer(f"The {first} is {x} and the {last} is {z}.", f"{x}, {y}, {z}")


def extremes(rng: random.Random) -> tuple[str, str]:
    """Pick the largest or the smallest of three different numbers below 100."""
    a, b, c = rng.sample(range(1, 100), 3)
    extreme = rng.choice(list(EXTREME_WORDS))
    value = max(a, b, c) if extreme == "largest" else min(a, b, c)
    word = rng.choice(EXTREME_WORDS[extreme])
    prompt = rng.choice(EXTREME_PROMPTS).format(word=word, a=a, b=b, c=c)
    return prompt, answer(f"Of {a}, {b} and {c}, the {extreme} is {value}.", value)


def counting(rng: random.Random) -> tuple[str, str]:
    """Count the two to five things of a list."""
    things = rng.sample(THINGS, rng.randint(2, 5))
    numbered = ", ".join(f"{thing} {number}" for number, thing in enumerate(things, start=1))
    prompt = rng.choice(COUNTING_PROMPTS).format(things=", ".join(things))
    return prompt, answer(f"Counting: {numbered}.", len(things))


KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "units": units,
    "arithmetic": arithmetic,
    "dates": dates,
    "extraction": extraction,
    "sorting": sorting,
    "extremes": extremes,
    "counting": counting,
}


def draw(kind: str, count: int, seed: int) -> list[Pair]:
    """Draw pairs of one kind; no prompt and no response occurs twice. A smaller count gives a prefix.

    Raises:
        ConfigError: the kind has fewer than `count` different questions.
    """
    rng = random.Random(f"{seed}-{kind}")  # a string seed, which Python hashes the same everywhere
    pairs: list[Pair] = []
    seen: set[str] = set()
    redraws = 0
    while len(pairs) < count:
        prompt, response = KINDS[kind](rng)
        if prompt not in seen and response not in seen:
            value = response.rpartition("Answer: ")[2]
            pairs.append(Pair(f"{kind}-{len(pairs):03}", kind, prompt, response, value))
            seen |= {prompt, response}
            redraws = 0
        elif (redraws := redraws + 1) == MAX_REDRAWS:
            raise ConfigError(
                f"kind {kind!r} has only {len(pairs)} different questions, {count} were asked for "
                f"(train + heldout, shared among {len(KINDS)} kinds): ask for fewer pairs"
            )
    return pairs


def shares(name: str, total: int) -> dict[str, int]:
    """Split a number of pairs among the kinds, evenly to within one.

    Raises:
        ConfigError: fewer pairs than kinds; the message names the argument `name`.
    """
    if total < len(KINDS):
        raise ConfigError(f"{name} is {total}: must be at least {len(KINDS)}, one pair of each kind")
    each, rest = divmod(total, len(KINDS))
    return {kind: each + (index < rest) for index, kind in enumerate(KINDS)}


def annotated_set(seed: int, train: int, heldout: int) -> tuple[list[Pair], list[Pair]]:
    """Draw the training pairs and the held-out pairs of the same kinds.

    Args:
        seed: of everything random; the same seed and numbers give the same pairs.
        train: number of training pairs.
        heldout: number of held-out pairs.

    Returns:
        The training pairs and the held-out pairs, both shuffled.

    Raises:
        ConfigError: a number is too small for one pair of each kind, or larger than a kind has questions.
    """
    train_shares, heldout_shares = shares("train", train), shares("heldout", heldout)
    train_pairs: list[Pair] = []
    heldout_pairs: list[Pair] = []
    for kind, held in heldout_shares.items():
        pairs = draw(kind, held + train_shares[kind], seed)
        heldout_pairs += pairs[:held]
        train_pairs += pairs[held:]
    random.Random(f"{seed}-train").shuffle(train_pairs)
    random.Random(f"{seed}-heldout").shuffle(heldout_pairs)
    return train_pairs, heldout_pairs


def further_prompts(seed: int, count: int) -> list[Pair]:
    """Pairs beside those of the demo's two files, whose prompts it uses without their responses."""
    train, _ = annotated_set(seed, TRAIN_PAIRS, HELDOUT_PAIRS)
    more, _ = annotated_set(seed, TRAIN_PAIRS + count, HELDOUT_PAIRS)
    known = {pair.id for pair in train}
    return [pair for pair in more if pair.id not in known]


def write_jsonl(path: Path, pairs: Sequence[Pair], annotated: bool = True) -> None:
    """Write pairs as JSON lines, replacing the file; without responses if they are not to be `annotated`."""
    rows = (pair._asdict() for pair in pairs)
    kept = (row if annotated else {name: row[name] for name in row if name != "response"} for row in rows)
    lines = (json.dumps(row) + "\n" for row in kept)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def length_table(pairs: Sequence[Pair], tokenizer_file: Path) -> str:
    """A table of the lengths of prompts and responses, in tokens without template and end of turn."""
    from tokenizers import Tokenizer  # only here: generating pairs needs the standard library alone

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    lines = ["tokens    min  median  p95  max"]
    for column in ("prompt", "response"):
        lengths = sorted(len(tokenizer.encode(getattr(pair, column)).ids) for pair in pairs)
        low, median, p95 = (lengths[int(q * (len(lengths) - 1))] for q in (0, 0.5, 0.95))
        lines.append(f"{column:8}  {low:3}  {median:6}  {p95:3}  {lengths[-1]:3}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: generate the two files; a bad argument ends it with status 2 and one line that says why."""
    parser = argparse.ArgumentParser(
        prog="python -m iris_core.demo.house_style",
        description="Generate the demo's annotated set.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--train", type=int, default=TRAIN_PAIRS, help="training pairs (default %(default)s)")
    parser.add_argument("--heldout", type=int, default=HELDOUT_PAIRS, help="held-out pairs (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json: print lengths in tokens")
    args = parser.parse_args(argv)
    try:
        train, heldout = annotated_set(args.seed, args.train, args.heldout)
    except ConfigError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out / "pairs.jsonl", train)
    write_jsonl(args.out / "heldout.jsonl", heldout)
    print(f"{len(train)} pairs in {args.out / 'pairs.jsonl'}, {len(heldout)} in heldout.jsonl")
    if args.tokenizer:
        print(length_table(train + heldout, args.tokenizer))


if __name__ == "__main__":
    main()
