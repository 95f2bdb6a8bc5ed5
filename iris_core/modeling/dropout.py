"""Turns off dropout and other noise of training mode: policy and opponent must be one function (as in TRL's DPO)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

NOISE = re.compile(r"drop_?out|pdrop|layer_?drop|drop_?path|input_jitter")


def disable(config: PreTrainedConfig) -> None:
    """Sets all noise rates in `config`, and in configurations nested in it, to 0."""
    for part in nested_configs(config):
        for name in _rates(part):
            setattr(part, name, 0.0)


def disable_layers(model: nn.Module) -> None:
    """Sets the rate of all dropout layers to 0, also of those that take it from no configuration."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0


def restore(config: PreTrainedConfig, original: PreTrainedConfig) -> None:
    """Gives `config` the noise rates of `original`, so that a saved model has the rates it was loaded with."""
    for part, source in zip(nested_configs(config), nested_configs(original), strict=True):
        for name in _rates(source):
            setattr(part, name, getattr(source, name))


def nested_configs(config: PreTrainedConfig) -> Iterator[Any]:
    """A configuration and all that are nested in it."""
    yield config
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            yield from nested_configs(inner)


def _rates(config: Any) -> list[str]:
    return [name for name, value in vars(config).items() if NOISE.search(name) and isinstance(value, float) and value]
