"""Trained weights and optimizer states in a checkpoint, as safetensors: any number of ranks can go on from it.

Each rank that has a part of the model writes its rows of every tensor. The files in order are the whole tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from iris_core.common.files import make_folder
from iris_core.execution import distributed

States = dict[str, dict[str, Tensor]]  # tensors by name, by the name of their file

WEIGHTS, OPTIMIZER = "weights", "optimizer"  # first words of their files' names, in a checkpoint


def states_of(model: Any, optimizer: torch.optim.Optimizer, *, copied: bool) -> States:
    """This rank's part of the trained weights and of the optimizer's states, none where another rank has the same.

    Args:
        model: with the trained weights.
        optimizer: of these.
        copied: whether the tensors are copies in main memory; else a later step changes them.
    """
    trained = _trained(model)
    copy, part, _ = _position(trained)
    if copy:
        return {}
    states = {f"{name}.{key}": state for name, each in trained.items() for key, state in optimizer.state[each].items()}
    found = {}
    for kind, tensors in ((WEIGHTS, trained), (OPTIMIZER, states)):
        local = {name: _local(tensor.detach()).contiguous() for name, tensor in tensors.items()}
        if copied:
            local = {name: tensor.to("cpu", copy=True) for name, tensor in local.items()}
        found[f"{kind}-{part:05}.safetensors"] = local
    return found


def write_states(checkpoint: Path, states: States) -> None:
    """Writes the parts of this rank to a checkpoint."""
    make_folder(checkpoint)
    for name, tensors in states.items():
        save_file(tensors, checkpoint / name)


def load_weights(checkpoint: Path, model: Any) -> None:
    """Gives `model` the trained weights of a checkpoint."""
    trained = _trained(model)
    with _opened(checkpoint, WEIGHTS) as files, torch.no_grad():
        for name, parameter in trained.items():
            rows = _rows(files, name, _own_rows(parameter)) if parameter.ndim else files[0].get_tensor(name)
            _local(parameter).copy_(rows)


def load_optimizer(checkpoint: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Gives `optimizer` the states of a checkpoint."""
    trained = _trained(model)
    with _opened(checkpoint, OPTIMIZER) as files:
        for stored in files[0].keys():  # noqa: SIM118, a file is no mapping
            name, _, key = stored.rpartition(".")
            optimizer.state[trained[name]][key] = _state(files, stored, trained[name])


def _trained(model: Any) -> dict[str, Tensor]:
    """Trainable parameters by name, tied ones once."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def _state(files: list[Any], name: str, parameter: Tensor) -> Tensor:
    """The part of an optimizer's state that belongs to the part of `parameter` on this rank."""
    if not files[0].get_slice(name).get_shape():  # the same for all parts, such as the number of steps
        whole: Tensor = files[0].get_tensor(name)
        return whole.to(parameter.device) if not parameter.ndim and not name.endswith(".step") else whole
    rows = _rows(files, name, _own_rows(parameter)).to(parameter.device)
    if not isinstance(parameter, DTensor):
        return rows
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(
        rows, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )


def _rows(files: list[Any], name: str, wanted: range) -> Tensor:
    """Some rows of a tensor whose rows are divided among `files`."""
    found, first = [], 0
    for file in files:
        part = file.get_slice(name)
        rows = part.get_shape()[0]
        start, stop = (min(max(row - first, 0), rows) for row in (wanted.start, wanted.stop))
        found.append(part[start:stop])
        first += rows
    return found[0] if len(found) == 1 else torch.cat(found)


def _own_rows(parameter: Tensor) -> range:
    """The rows of `parameter` that this rank has: equal parts, but the last ones may be smaller."""
    _, part, parts = _position({"": parameter})
    rows = range(len(parameter))
    each = -(-len(rows) // parts)
    return rows[part * each : (part + 1) * each]


def _position(trained: dict[str, Tensor]) -> tuple[int, int, int]:
    """Which copy of the model this rank has a part of, which part, and of how many."""
    parameter = next(iter(trained.values()))
    if not isinstance(parameter, DTensor):
        return distributed.rank(), 0, 1
    mesh = parameter.device_mesh
    return mesh.get_rank() // mesh.size(-1), mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def _opened(checkpoint: Path, kind: str) -> Iterator[list[Any]]:
    """The files of a kind, in the order of their rows."""
    with ExitStack() as stack:
        files = sorted(checkpoint.glob(f"{kind}-*.safetensors"))
        yield [stack.enter_context(safe_open(file, framework="pt")) for file in files]
