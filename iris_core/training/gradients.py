"""Gradients of an optimizer batch, summed over the ranks."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from iris_core.execution import distributed
from iris_core.modeling.scoring import causal_of
from iris_core.modeling.sharding import reached_names


def sum_gradients(model: PreTrainedModel) -> None:
    """Makes the gradients on each rank those of the whole batch.

    A parameter that no rank has reached (a vision tower, an expert) has none: it takes no step, nor weight decay.
    """
    if distributed.world_size() == 1:
        return
    trained = {name: each for name, each in causal_of(model).named_parameters() if each.requires_grad}
    sharded = isinstance(causal_of(model), FSDPModule)  # which has summed them, and gives zeros to what is not reached
    here = reached_names(model) if sharded else {name for name, each in trained.items() if each.grad is not None}
    reached = torch.tensor([float(name in here) for name in trained], device=model.device)
    distributed.all_reduce(reached)
    for parameter, ranks in zip(trained.values(), reached.tolist(), strict=True):
        if not ranks:
            parameter.grad = None
        elif not sharded:
            if parameter.grad is None:  # a rank without a row
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
