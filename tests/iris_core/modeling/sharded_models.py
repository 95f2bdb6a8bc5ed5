"""Compares models of some classes, sharded over the ranks of one torchrun, with the same models in one process.

    python -m torch.distributed.run … -m tests.iris_core.modeling.sharded_models folders.json results.json

The first file has folders of models by name. Rank 0 writes for each what is wrong with it, or null, to the second.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from iris_core.data.packing import Row, build_row
from iris_core.execution import distributed
from iris_core.modeling.architectures import SHORT, Values, difference
from iris_core.modeling.loading import load_policy
from iris_core.modeling.patches.norm_rotary import restored_rotary
from iris_core.modeling.scoring import own, response_logprobs
from iris_core.modeling.sharding import PARTS, shard, whole_tensors
from iris_core.store import Artifact, Policy


def compare(folder: Path, mesh: DeviceMesh) -> str | None:
    """What differs between the model in `folder` on all ranks, a row each, and in one process; None if nothing does."""
    policy = Policy(model=Artifact(path=folder, digest="unchecked"))
    rows = [build_row([SHORT[rank % 2]], [0]) for rank in range(distributed.world_size())]
    expected = differentiate(load_policy(policy, "float32"), rows)
    model = load_policy(policy, "float32", mesh=mesh)
    shard(model, mesh)
    if not all(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return "not all weights are sharded"
    logprobs, gradients = differentiate(model, own(rows))
    return difference((gathered(logprobs), whole_tensors(gradients)), expected)


def differentiate(model: Any, rows: list[Row]) -> Values:
    """Log-probs of `rows`, and the gradients of a weighted sum of them."""
    found = []
    for row in rows:
        logprobs = response_logprobs(model, row)
        (logprobs * torch.tensor([-1.0, 1.5])).sum().backward()
        found.append(logprobs.detach())
    return torch.cat(found), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def gathered(logprobs: torch.Tensor) -> torch.Tensor:
    """Those of all ranks, a row each."""
    together = torch.zeros(distributed.world_size(), logprobs.shape[1])
    together[distributed.rank()] = logprobs
    distributed.all_reduce(together)
    return together


def main() -> None:
    """Compares all models; an error in one leaves the ranks apart, and ends all."""
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (distributed.world_size(),), mesh_dim_names=(PARTS,))
    results = {}
    for name, folder in json.loads(Path(sys.argv[1]).read_text()).items():
        print(name, flush=True)
        with restored_rotary():
            results[name] = compare(Path(folder), mesh)
    if distributed.rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    distributed.all_ranks(lambda work: work(), main)
