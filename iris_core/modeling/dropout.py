"""No dropout, and no other noise of training mode: policy and opponent are scored by one function (as in TRL's DPO)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

NOISE = re.compile(r"drop_?out|pdrop|layer_?drop|drop_?path|input_jitter")


def silence(config: PreTrainedConfig) -> None:
    """Sets every rate of noise in `config`, and in those inside it, to 0."""
    for part in parts(config):
        for name in _rates(part):
            setattr(part, name, 0.0)


def silence_layers(model: nn.Module) -> None:
    """Does the same for dropout layers whose rate is not in the configuration."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0


def restore(config: PreTrainedConfig, original: PreTrainedConfig) -> None:
    """Gives `config` the rates of `original`: what is saved is what was loaded."""
    for part, source in zip(parts(config), parts(original), strict=True):
        for name in _rates(source):
            setattr(part, name, getattr(source, name))


def parts(config: PreTrainedConfig) -> Iterator[Any]:
    """A configuration and all those inside it."""
    yield config
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            yield from parts(inner)


def _rates(config: Any) -> list[str]:
    return [name for name, value in vars(config).items() if NOISE.search(name) and isinstance(value, float) and value]
