"""The methods that panel c compares, in the groups of its tables, and the grid of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.study.verified.losses import Baseline, Negatives
from benchmarks.study.verified.regimes import Regime
from iris_core.config.objective import VERIFIED_BASELINE, ObjectiveName, ObjectivePart, default_beta

Prompts = Literal["annotated", "all", "unannotated"]

SUPERVISED_RATES = (3.2e-4, 1e-3, 3.2e-3, 1e-2, 3.2e-2, 1e-1)
PLAIN_RATES = (1e-3, 3.2e-3, 1e-2, 3.2e-2)
BETAS = (0.3, 1.0, 3.0, 10.0)
VERIFIED_RATES = (3.2e-3, 1e-2, 3.2e-2, 1e-1)
WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0)
BUDGETS = (1, 3, 10)
SAMPLES = (1, 4, 16)
RIVALS: tuple[ObjectiveName, ...] = ("spin", "space", "spif")
LABELS = {  # of a method's changes in its name
    "prompts": "{} prompts",
    "noise": "{:.0%} wrong verdicts",
    "baseline": "{} p̂",
    "beta": "β {:g}",
    "strength": "κ {:g}",
    "normalized": "normalised",
    "negatives": "{} negatives",
    "refreshed": "refreshed",
    "positives": "negatives alone",
    "objective": "{}",
}


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        name: unique, shown in tables.
        objective: name in `OBJECTIVES_OF_STUDY`.
        samples: n, responses to each prompt; 0: no verifier.
        prompts: whose samples are used.
        budget: epochs in place of one.
        adaptive: whether the order falls from 2 to 1 with the gap.
        beta: reward scale with a verifier; without one it belongs to the grid.
        strength: κ, the part of p̂ that is subtracted from verdicts.
        baseline: whose share p̂ is.
        noise: share of wrong verdicts.
        positives: whether right samples have weight.
        normalized: whether the weights' sum is the same whatever the share of right samples.
        negatives: which wrong samples, or which of their tokens, are pushed down.
        refreshed: whether the opponent answers again in every epoch.
    """

    name: str
    objective: str = "iris"
    samples: int = 0
    prompts: Prompts = "annotated"
    budget: int = 1
    adaptive: bool = False
    beta: float = 1.0
    strength: float = VERIFIED_BASELINE
    baseline: Baseline = "prompt"
    noise: float = 0.0
    positives: bool = True
    normalized: bool = False
    negatives: Negatives = "first-token"
    refreshed: bool = False

    @property
    def verified(self) -> bool:
        """Whether there is a verifier."""
        return self.samples > 0

    @property
    def settings(self) -> ObjectivePart:
        """The product's settings, where none is set."""
        return ObjectivePart().resolved(self.verified).weighed(order_is_one=True)

    @property
    def cells(self) -> list[tuple[float, float]]:
        """The grid: learning rates × β, or × ρ with a verifier; supervised fine-tuning has neither."""
        if self.objective == "sft":
            return [(rate, 1.0) for rate in SUPERVISED_RATES]
        rates, scales = (VERIFIED_RATES, WEIGHTS) if self.verified else (PLAIN_RATES, BETAS)
        return [(rate, scale) for rate in rates for scale in scales]


SUPERVISED = [Method(f"SFT ×{budget}", "sft", budget=budget) for budget in BUDGETS]


def rft(samples: int, **changes: Any) -> Method:
    """Rejection-sampling fine-tuning."""
    return _named(Method(f"RFT n={samples}", "rft", samples, strength=0.0), changes)


def iris(samples: int, **changes: Any) -> Method:
    """IRIS on verified samples."""
    return _named(Method(f"IRIS-V n={samples}", "iris", samples), changes)


def balanced(strength: float, **changes: Any) -> Method:
    """RFT with κ·p̂ as baseline, and whole wrong samples."""
    method = Method(f"RFT n=4 κ={strength:g}", "balanced", 4, strength=strength, baseline="smoothed", negatives="whole")
    return _named(method, changes)


def _named(method: Method, changes: dict[str, Any]) -> Method:
    """The changed method, with the changes in its name."""
    parts = [LABELS[name].format(value) for name, value in changes.items() if value != getattr(method, name)]
    return replace(method, name=", ".join([method.name, *parts]), **changes)


PLAIN = [
    Method("IRIS, α = 1"),
    Method("IRIS, adaptive 2→1", adaptive=True),
    Method("SPIN", "spin"),
    Method("SPACE", "space"),
    Method("SPIF", "spif"),
]
VERIFIED = [
    *(make(samples) for make in (rft, iris) for samples in SAMPLES if (make, samples) != (iris, 1)),
    iris(1, baseline="smoothed", negatives="whole"),
    *(make(4, noise=0.1) for make in (rft, iris)),
    balanced(1.0, noise=0.1),
    *(Method(f"{name.upper()}-V n=4", name, 4, beta=default_beta(name, True)) for name in RIVALS),
]


def forms(prompts: Prompts) -> list[Method]:
    """What the study tries to be at least RFT, with four samples of some prompts."""
    iris_forms: list[dict[str, Any]] = [
        {"negatives": "whole"},
        {"negatives": "whole", "beta": 0.5},
        {"negatives": "whole", "baseline": "smoothed"},
        {"negatives": "whole", "baseline": "common"},
        {"negatives": "nearest"},
        {"negatives": "suffix"},
        {"beta": 0.1},
        {"beta": 2.0},
        {"strength": 1.0},
        {"strength": 1.0, "negatives": "whole"},
        {"normalized": True},
        {"refreshed": True},
        {"positives": False},
    ]
    return [
        rft(4, prompts=prompts, refreshed=True),
        *(iris(4, prompts=prompts, **changes) for changes in iris_forms),
        *(balanced(strength, prompts=prompts) for strength in (0.25, 0.5, 1.0)),
        balanced(1.0, prompts=prompts, baseline="common"),
        balanced(1.0, prompts=prompts, negatives="first-token"),
        balanced(1.0, prompts=prompts, objective="reinforce"),
    ]


def groups(regime: Regime) -> dict[str, list[Method]]:
    """The methods that a regime compares, by title."""
    prompts: Prompts = "all" if regime.split else "annotated"
    unannotated = [make(4, prompts=prompts) for prompts in ("all", "unannotated") for make in (rft, iris)]
    return {
        "Supervised fine-tuning": SUPERVISED,
        "Plain self-play": PLAIN,
        "With a verifier": VERIFIED,
        **({"With prompts without annotation": unannotated} if regime.split else {}),
        "Looking for better": forms(prompts),
    }
