"""Draws docs/images/objective.png: gradient coefficients of each objective, and effective sample sizes of its weights.

python -m benchmarks.objective_plot
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iris_core.config import ObjectivePart
from iris_core.objectives.losses import (
    OBJECTIVES,
    Parameters,
    Rewards,
    effective_sample_size,
    gradient_coefficients,
    tilted_weights,
)

OUT = Path(__file__).parents[1] / "docs" / "images" / "objective.png"
ORDERS = (0.5, 1.0, 1.5, 2.0)
PARAMETERS = Parameters.of(ObjectivePart(weight_clip=5.0, likelihood_weight=0.0), order=1.0)
RIVALS = {"spin": "--", "space": "-.", "spif": ":"}


def synthetic_coefficients(axes: Axes) -> None:
    """∂loss/∂r' against r', with the annotated reward at −r' as in a symmetric game; scaled to 1 at r' = 0."""
    reward = torch.linspace(-3, 1, 200)
    rewards = Rewards(-reward, reward)
    for order in ORDERS:
        _, down = gradient_coefficients(OBJECTIVES["iris"], rewards, replace(PARAMETERS, order=order))
        axes.plot(reward, down, label=f"iris, α = {order:g}")
    _, flat = gradient_coefficients(OBJECTIVES["iris"], rewards, replace(PARAMETERS, log_normalizers=(0.0, reward)))
    axes.plot(reward, flat, color="0.6", label="iris, batch of one")
    for name, dashes in RIVALS.items():
        _, down = gradient_coefficients(OBJECTIVES[name], rewards, PARAMETERS)
        start = gradient_coefficients(OBJECTIVES[name], Rewards(torch.zeros(1), torch.zeros(1)), PARAMETERS)[1]
        axes.plot(reward, down / start, dashes, color="black", linewidth=1.2, label=name)
    axes.set(xlabel="synthetic reward r′ (annotated reward −r′)", ylabel="gradient coefficient of y′, 1 at r′ = 0")
    axes.set_ylim(-0.1, 4)
    axes.legend(fontsize=8)


def concentration(axes: Axes) -> None:
    """ESS/n of both weights against α, for normal rewards of two spreads: exp(−s²·σ²) in the limit of many samples."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200_000, generator=generator)
    orders = torch.linspace(0, 3, 31)
    for spread, dashes in ((0.3, "-"), (1.0, "--")):
        for side, shift, color in (("annotated", 1.0, "C0"), ("synthetic", 0.0, "C1")):
            sizes = [
                effective_sample_size(tilted_weights(spread * normal, (order - shift).item(), 0.0, float("inf")))
                / len(normal)
                for order in orders
            ]
            axes.plot(orders, sizes, dashes, color=color, label=f"{side}, sd of r = {spread:g}")
    axes.set(xlabel="order α", ylabel="effective sample size / n", ylim=(0, 1.05))
    axes.legend(fontsize=8)


def main() -> None:
    """Draws both panels."""
    argparse.ArgumentParser("python -m benchmarks.objective_plot", description="Draw the plot.").parse_args()
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        synthetic_coefficients(left)
        concentration(right)
        figure.savefig(OUT, dpi=120)


if __name__ == "__main__":
    main()
