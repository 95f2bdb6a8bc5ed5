"""An optimiser and a learning-rate schedule that differ from those of torch and transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class RMSprop(torch.optim.RMSprop):
    """RMSprop with decoupled weight decay: weights shrink by the factor 1 − lr · decay before each step, as AdamW's do.

    torch's own adds decay · weight to the gradient, and the division by the root mean square cancels it.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Treats a group's `weight_decay` as decoupled: under another name, torch's step leaves it alone."""
        decay = param_group.get("weight_decay", self.defaults["weight_decay"])
        super().add_param_group({**param_group, "weight_decay": 0.0, "decoupled_decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all parameters with a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["decoupled_decay"])
        return super().step(closure)


def learning_rate_share(step: int, steps: int, warmup_ratio: float, kind: str) -> float:
    """Share of the peak learning rate at `step` = 0, 1, …; never 0, so that a run of one step trains.

    It rises linearly over the warm-up, is 1 at the first step after it, and then falls towards 0 ("linear", "cosine")
    or stays 1 ("constant").

    Args:
        step: optimiser steps so far.
        steps: of the whole run.
        warmup_ratio: share of the steps that are warm-up.
        kind: "linear", "cosine" or "constant".
    """
    warmup = int(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(step, steps - 1) - warmup  # the scheduler also asks for the step after the last
    share = done / (steps - warmup)
    if kind == "linear":
        return 1 - share
    return (1 + math.cos(math.pi * share)) / 2 if kind == "cosine" else 1.0
