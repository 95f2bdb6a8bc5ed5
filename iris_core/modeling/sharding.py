"""Shares a model's weights among ranks by FSDP2: each keeps a part of every tensor, and gathers a layer while it runs.

Gradients are summed over the ranks, as the loss is a sum over all their rows. FSDP acts where a module is called, so
calling the model computes log-probs of a row, and calling its lm_head runs the log-prob kernel. All ranks must make the
same number of passes (`iris_core.modeling.scoring.waits`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from iris_core.common.errors import ModelError
from iris_core.data.packing import Row
from iris_core.execution import distributed
from iris_core.modeling.scoring import causal_of, head_logprobs, sums_of_logprobs

PARTS = "fsdp"  # name of the mesh's dimension along which ranks have parts; PEFT takes others for tensor parallelism


def shard(model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Shards `model`, with or without an adapter, over the ranks of `mesh`.

    Args:
        model: whole on every rank, or loaded with `mesh[PARTS]`; afterwards a rank has its part of each tensor.
        mesh: of the dimension `PARTS`, and of another one before it where weights are the same along that.
        dtype: that layers compute in; None: that of their weights, which keep theirs in any case.

    Raises:
        ModelError: its weights cannot be shared.
    """
    causal = causal_of(model)
    _check(causal)
    parts = _take_parts(causal)
    _compute_in_forward(causal)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if dtype else MixedPrecisionPolicy()
    for layer in _layers(causal):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    if not _is_tied(causal):  # else both belong to the root, which is whole from forward to the end of backward
        fully_shard(causal.get_input_embeddings(), mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(causal.get_output_embeddings(), mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(causal, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for unit in _units(causal):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo refuses a factor otherwise
    causal.set_reduce_scatter_unused_params(True)  # of experts that only other ranks' tokens reach
    _put_parts(causal, parts)
    _watch(causal)


def reached_names(model: PreTrainedModel) -> set[str]:
    """Names in the causal model of the parameters that backward passes have reached on this rank since the last call.

    FSDP has a gradient for each parameter: zeros for one that no rank has reached.
    """
    causal = causal_of(model)
    found: set[str] = causal.reached
    causal.reached = set()
    return found


@contextmanager
def nothing_reached(model: PreTrainedModel) -> Iterator[None]:
    """Passes inside reach no parameter: they only help other ranks."""
    before = set(causal_of(model).reached)
    yield
    causal_of(model).reached = before


def reshard(model: PreTrainedModel) -> None:
    """Gives up gathered weights: without a backward pass some stay, and an optimiser made then would hold these."""
    for unit in _units(causal_of(model)):
        unit.reshard()


def whole_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole of each tensor on the CPU of rank 0, gathered from all ranks, which all call this; empty elsewhere."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if distributed.rank() == 0:
            found[name] = whole.cpu()
    return found


def _compute_in_forward(causal: Any) -> None:
    """Makes log-probs of responses what `causal` computes when it is called with a row."""
    head = causal.get_output_embeddings()

    def forward_head(hidden: Tensor, targets: Tensor) -> Tensor:
        return head_logprobs(causal, hidden, targets).clone()  # FSDP's hooks on a result warn of views

    def forward(row: Row) -> Tensor:
        return sums_of_logprobs(causal, row, head).clone()

    head.forward, causal.forward = forward_head, forward


def _layers(causal: nn.Module) -> list[nn.Module]:
    """The layers, inner ones first."""
    return [module for module in causal.modules() if isinstance(module, GradientCheckpointingLayer)][::-1]


def _units(causal: nn.Module) -> list[FSDPModule]:
    return [module for module in causal.modules() if isinstance(module, FSDPModule)]


def _watch(causal: Any) -> None:
    """Makes `causal.reached` the names of the parameters that backward passes reach; see `reached_names`."""
    causal.reached = set()
    watched: set[nn.Parameter] = set()

    def watch(unit: nn.Module, _: Any, prefix: str) -> None:
        for name, parameter in unit.named_parameters(prefix):
            if parameter.requires_grad and not isinstance(parameter, DTensor) and parameter not in watched:
                watched.add(parameter)
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: causal.reached.add(name))

    for prefix, module in causal.named_modules():
        if isinstance(module, FSDPModule):
            module.register_forward_pre_hook(functools.partial(watch, prefix=prefix))


def _is_tied(causal: Any) -> bool:
    embedding = set(causal.get_input_embeddings().parameters())
    return not embedding.isdisjoint(causal.get_output_embeddings().parameters())


def _take_parts(causal: nn.Module) -> dict[str, DTensor]:
    """The parts that this rank has loaded; whole weights without content take their places."""
    parts = {name: parameter for name, parameter in causal.named_parameters() if isinstance(parameter, DTensor)}
    empty = {
        part: nn.Parameter(torch.empty(part.shape, dtype=part.dtype, device="meta"), requires_grad=part.requires_grad)
        for part in parts.values()
    }
    for module in causal.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in empty:
                setattr(module, name, empty[parameter])
    return parts


def _put_parts(causal: Any, parts: dict[str, DTensor]) -> None:
    """Gives a sharded model what `_take_parts` has taken from it."""
    states = {}
    for name, place in causal.named_parameters():
        if (part := parts.get(name)) is not None:
            shape, stride = part.shape, part.stride()
            local, mesh, placements = part.to_local(), place.device_mesh, place.placements
            states[name] = DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)
    causal.load_state_dict(states, strict=False, assign=True)
    causal.tie_weights()


def _check(causal: nn.Module) -> None:
    """Refuses what FSDP cannot share: layers with common weights, and single numbers."""
    owners = Counter(parameter for layer in _layers(causal) for parameter in set(layer.parameters()))
    for name, parameter in causal.named_parameters():
        if owners[parameter] > 1 or not parameter.ndim:
            problem = "is in several layers" if parameter.ndim else "is a single number"
            raise ModelError(
                f"training.sharding: {name} of {type(causal).__name__} {problem}, which cannot be sharded: set "
                "training.sharding: none"
            )
