"""All variants of the study, in the groups of its tables, and the grid of each variant."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from benchmarks.study.selfplay import Variant
from iris_core.config import SchedulePart
from iris_core.config.objective import NormalizerName

LEARNING_RATES = (1e-3, 3.2e-3, 1e-2, 3.2e-2, 1e-1)
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FACTORS = (3.0, 10.0)  # on the best learning rate, panel b

NORMALIZERS: tuple[NormalizerName, ...] = ("unit", "anchored", "running", "batch")
ORDERS = (0.5, 1.0, 1.5, 2.0)
Rule = Literal["adaptive", "linear", "cosine"]
MOVING: tuple[Rule, ...] = ("adaptive", "linear", "cosine")
RIVALS = ("spin", "hinge", "space", "spif", "tspin")


def constant(order: float) -> SchedulePart:
    """The same order α in every iteration."""
    return SchedulePart(kind="constant", max_order=order, min_order=order)


def fixed(normalizer: NormalizerName, order: float, clip: float = 1.0, weight: float = 0.0) -> Variant:
    """IRIS with one order α throughout."""
    name = f"iris {normalizer} α={order:g}{_suffix(clip, weight)}"
    return Variant(name, "iris", normalizer, constant(order), clip, weight)


def moving(
    normalizer: NormalizerName,
    rule: Rule = "adaptive",
    bounds: tuple[float, float] = (2.0, 1.0),
    clip: float = 1.0,
    weight: float = 0.0,
) -> Variant:
    """IRIS with an order that moves between `bounds`, from the first of them in the first iteration."""
    high, low = bounds
    name = f"iris {normalizer} {rule} {high:g}→{low:g}{_suffix(clip, weight)}"
    schedule = SchedulePart(kind=rule, max_order=high, min_order=low)
    return Variant(name, "iris", normalizer, schedule, clip, weight)


def _suffix(clip: float, weight: float) -> str:
    return f", clip {clip:g}" + (f", λ={weight:g}" if weight else "")


def _family(clip: float) -> list[Variant]:
    return [
        *(fixed(kind, order, clip) for kind in NORMALIZERS for order in ORDERS),
        *(moving(kind, rule, clip=clip) for kind in NORMALIZERS for rule in MOVING),
    ]


def _likelihood() -> list[Variant]:
    kinds: tuple[NormalizerName, ...] = ("unit", "anchored")
    return [
        *(fixed(kind, 1.0, clip=5.0, weight=1.0) for kind in kinds),
        *(fixed(kind, 1.0, weight=weight) for kind in kinds for weight in (0.1, 1.0)),
        *(moving(kind, weight=1.0) for kind in kinds),
        *(Variant(f"{name}, λ=1", f"{name}+likelihood", likelihood_weight=1.0) for name in RIVALS if name != "hinge"),
    ]


def _extras() -> list[Variant]:
    def extra(objective: str, order: float, clip: float = 5.0, weight: float = 0.0) -> Variant:
        name = f"{objective} α={order:g}{_suffix(clip, weight)}"
        return Variant(name, objective, "unit", constant(order), clip, weight)

    return [
        extra("iris-skewed", 1.0),
        extra("iris-skewed", 2.0),
        extra("iris-skewed", 1.0, weight=1.0),
        extra("iris-centred", 1.0),
        extra("iris-centred", 1.0, weight=1.0),
        extra("iris-bounded", 1.0),
        extra("iris-bounded", 1.0, clip=1.0),
        extra("iris-tempered", 1.0),
        extra("iris-tempered", 2.0),
        extra("iris-stepwise", 2.0),
        extra("iris-stepwise", 2.0, clip=1.0),
    ]


GROUPS: dict[str, list[Variant]] = {
    "Rivals": [Variant(name, objective=name) for name in (*RIVALS, "sft")],
    "IRIS: normaliser and order, weights clipped at 1": _family(clip=1.0),
    "IRIS: normaliser and order, weights clipped at 5": _family(clip=5.0),
    "Bounds of the adaptive order": [
        moving("anchored", bounds=bounds, clip=clip)
        for clip in (1.0, 5.0)
        for bounds in ((1.5, 1.0), (1.5, 0.5), (2.0, 0.5), (3.0, 1.0))
    ],
    "Weight clip": [
        variant
        for clip in (2.0, 20.0, math.inf)
        for variant in (fixed("anchored", 1.0, clip), moving("anchored", clip=clip))
    ],
    "Annotated log-likelihood term": _likelihood(),
    "Looking for better": _extras(),
    "All pairs annotated": [
        Variant("sft, 100 % annotated", objective="sft", all_pairs=True),
        replace(fixed("anchored", 1.0), name="iris anchored α=1, clip 1, 100 % annotated", all_pairs=True),
    ],
}

DEFAULT = moving("anchored", weight=1.0).name
HEADLINE = [
    DEFAULT,
    fixed("anchored", 1.0, weight=1.0).name,
    fixed("anchored", 1.0).name,
    moving("anchored").name,
    fixed("anchored", 1.0, clip=5.0).name,
    moving("unit", clip=5.0).name,
    *RIVALS,
    "spin, λ=1",
    "space, λ=1",
    "sft",
]
PLOTTED = [DEFAULT, fixed("anchored", 1.0).name, moving("unit", clip=5.0).name, "spin", "space", "spif", "sft"]


def cells(variant: Variant) -> list[tuple[float, float]]:
    """The grid of learning rates × β; supervised fine-tuning has no β."""
    betas = (1.0,) if variant.objective == "sft" else BETAS
    return [(rate, beta) for rate in LEARNING_RATES for beta in betas]
