"""Which layers of a model can have an adapter."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from iris_core.common.errors import ConfigError, ModelError, first_line


def check_targets(model: Any, targets: str | list[str]) -> None:
    """Refuses targets of an adapter that match no layer of `model`, or one that cannot be adapted.

    Args:
        model: a causal language model without an adapter, on any device.
        targets: as in PEFT: "all-linear", a list of names (whole, or their ends after a dot), or a regular expression
            for whole names.

    Raises:
        ConfigError: a target matches no layer, or a layer that cannot be adapted.
    """
    linear = _linear_layers(model)
    wanted = targets if isinstance(targets, list) else [targets]
    for target in wanted if targets != "all-linear" or not linear else ():
        found = [name for name, _ in model.named_modules() if _fits(name, target, targets)]
        wrong = [name for name in found if name not in linear]
        if wrong or not found:
            where = f"{wrong[0]}, which cannot be adapted" if wrong else "no layer"
            names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ConfigError(
                f"training.lora.targets: {target!r} fits {where}; the linear layers of "
                f"{type(model).__name__} are {names or 'none'}: give a list of these, or all-linear"
            )


def not_adaptable(model: Any, targets: str | list[str], error: Exception) -> ModelError:
    """The error for PEFT's refusal to adapt `model`, or for an adapted model that does not run."""
    return ModelError(
        f"training.lora.targets: {targets!r} does not fit {type(model).__name__}: {first_line(error)}: name other "
        "layers, or set training.method to full"
    )


def _linear_layers(model: Any) -> set[str]:
    """Names of the layers that can be adapted: not the lm_head where it shares its weight with the embedding."""
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and f"{name}.weight" not in tied
    }


def _fits(name: str, target: str, targets: str | list[str]) -> bool:
    if isinstance(targets, list):
        return f".{name}".endswith(f".{target}")
    try:
        return re.fullmatch(target, name) is not None
    except re.error:
        return False
