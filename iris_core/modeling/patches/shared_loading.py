"""transformers' `from_pretrained`, where each rank reads and keeps only its part of every weight.

Why: transformers shards a model in `from_pretrained` by its own plan alone: with no adapter in its units, on a mesh of
one dimension. What it reads for a weight follows from the weight, which may be any DTensor.
Seen in: transformers 5.19.
Can go: when `from_pretrained` takes a function that shards the model, or a plan that leaves weights as DTensors.
Restored after the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter
from transformers.distributed import DistributedConfig


@contextmanager
def read_parts(mesh: DeviceMesh) -> Iterator[dict[str, Any]]:
    """Arguments for `from_pretrained`, which inside loads each parameter as a DTensor, divided along its first axis.

    A model whose stored weights are combined along that axis is loaded whole.

    Args:
        mesh: of the ranks that share a model; one dimension.
    """

    def divide(model: PreTrainedModel, *_: Any) -> PreTrainedModel:
        if _can_divide(model):
            _divide(model, mesh)
        return model

    PreTrainedModel.maybe_distribute_model = staticmethod(divide)
    try:
        yield {"distributed_config": DistributedConfig()}
    finally:
        del PreTrainedModel.maybe_distribute_model


def _can_divide(model: PreTrainedModel) -> bool:
    """Whether combining parts of stored tensors gives the part of the combined tensor."""
    converters = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightConverter)]
    steps = [step for each in converters for step in each.operations]
    return all(isinstance(step, MergeModulelist) or getattr(step, "dim", 0) > 0 for step in steps)


def _divide(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    divided: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay one
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in divided:
                part = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
                divided[parameter] = nn.Parameter(part, requires_grad=parameter.requires_grad)
            setattr(module, name, divided[parameter])
