"""The policy of an iteration: its start, its numerics, its parts on several ranks, and how it is saved."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import PreTrainedModel

from iris_core.common.files import remove
from iris_core.execution import distributed
from iris_core.modeling import dropout, loading, sharding
from iris_core.modeling.patches.lora import fuse_lora
from iris_core.modeling.sizes import sizes_of
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Policy
from iris_core.training import memory
from iris_core.training.memory import Sharding


def sharding_of(spec: TrainSpec) -> Sharding:
    """What the ranks share of the model.

    Raises:
        ConfigError: the model cannot be shared.
    """
    if distributed.world_size() == 1:
        return "none"
    return _sharding_of(spec.model_dump_json(), *_machines())


def _machines() -> tuple[int, int]:
    """How many there are, and the ranks of each: as they were started, whatever the recipe says."""
    per_node = distributed.local_world_size()
    return distributed.world_size() // per_node, per_node


@functools.cache
def _sharding_of(spec_json: str, nodes: int, per_node: int) -> Sharding:
    spec = TrainSpec.model_validate_json(spec_json)
    row = max(spec.longest, tokens_per_row(spec))
    training = spec.training.model_copy(update={"packing": spec.packing, "tokens_per_batch": row})
    devices = memory.Devices(nodes, per_node, _memory_of_rank_0())
    config = loading.load_config(spec.policy.model.path, spec.trust_remote_code)
    sizes = sizes_of(config, training.lora if training.method == "lora" else None, spec.trust_remote_code)
    return memory.sharding_of(sizes, training, spec.dtype, devices)


def _memory_of_rank_0() -> float | None:
    """Bytes of its GPU, on all ranks, which must come to the same choice; None on CPUs."""
    if not torch.cuda.is_available():
        return None
    own = torch.cuda.get_device_properties(distributed.local_rank()).total_memory
    found = torch.tensor(own if distributed.rank() == 0 else 0)
    distributed.all_reduce(found)
    return float(found)


def load(spec: TrainSpec, policy: Policy, *, trainable: bool = False) -> PreTrainedModel:
    """The model of `policy` as it is trained; where ranks share it, each has read its part (see `shard`)."""
    mesh = _mesh(spec)
    return loading.load_policy(
        policy,
        "float32" if spec.training.method == "full" else spec.dtype,  # bfloat16 rounds small updates away
        trainable=trainable,
        trust_remote_code=spec.trust_remote_code,
        mesh=mesh and mesh[sharding.PARTS],
    )


def shard(spec: TrainSpec, model: PreTrainedModel) -> PreTrainedModel:
    """`model`, shared by the ranks as `spec` says."""
    if mesh := _mesh(spec):
        sharding.shard(model, mesh, torch.bfloat16 if rounds_matmuls(spec) else None)
    return model


def _mesh(spec: TrainSpec) -> DeviceMesh | None:
    """The ranks that share a model: all of them, or those of each machine; None: each has a whole one."""
    kind = sharding_of(spec)
    if kind == "none":
        return None
    return _mesh_of(_machines() if kind == "hybrid" else (distributed.world_size(),))


@functools.cache
def _mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    names = ("copies", sharding.PARTS)[-len(shape) :]
    return init_device_mesh(loading.device().type, shape, mesh_dim_names=names)


def trainable_policy(spec: TrainSpec) -> PreTrainedModel:
    """The policy at the start of the iteration, in evaluation mode: all weights trainable, or the adapter only."""
    model = load(spec, spec.policy, trainable=True)
    if spec.training.method == "lora" and spec.policy.adapter is None:
        from peft import LoraConfig, get_peft_model

        lora = spec.training.lora
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            use_rslora=lora.use_rslora,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
        fuse_lora(model)
    return shard(spec, model)


def rounds_matmuls(spec: TrainSpec) -> bool:
    """Whether weights are in fp32 and matmuls in bfloat16."""
    return spec.training.method == "full" and spec.dtype == "bfloat16"


def numerics(spec: TrainSpec) -> str:
    """What log-probs are computed by: sharded layers compute in bfloat16 throughout, autocast only in matmuls."""
    return "sharded" if rounds_matmuls(spec) and sharding_of(spec) != "none" else "plain"


def precision(spec: TrainSpec) -> functools.partial[AbstractContextManager[object]]:
    """Context manager around each forward: autocast where neither the weights nor sharding have the matmuls' dtype."""
    if rounds_matmuls(spec) and numerics(spec) == "plain":
        return functools.partial(torch.autocast, loading.device().type, dtype=torch.bfloat16)
    return functools.partial(nullcontext)


def tokens_per_row(spec: TrainSpec) -> int:
    """The packing budget."""
    return spec.execution.tokens_per_batch or spec.training.tokens_per_batch


@torch.no_grad()
def round_weights(spec: TrainSpec, model: PreTrainedModel) -> None:
    """Rounds fully trained weights to the dtype that they are saved in, so that what is measured is what is saved."""
    if spec.training.method == "full":
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(getattr(torch, spec.dtype)))


def save_policy(spec: TrainSpec, model: PreTrainedModel, out: Path) -> tuple[str, Path]:
    """Saves what was trained as safetensors: the adapter, or the whole model with its tokenizer. All ranks call this.

    Returns:
        The name of the output, and its folder.
    """
    name = "adapter" if spec.training.method == "lora" else "model"
    sharding.reshard(model)
    tensors = _tensors_to_save(spec, model)
    distributed.together(functools.partial(_save, spec, model, tensors, out / name))
    return name, out / name


def _save(spec: TrainSpec, model: PreTrainedModel, tensors: dict[str, Tensor], folder: Path) -> None:
    """On rank 0."""
    if distributed.rank():
        return
    for old in ("adapter", "model"):  # of an earlier attempt
        remove(folder.parent / old)
    (_save_adapter if folder.name == "adapter" else _save_model)(spec, model, tensors, folder)


def _tensors_to_save(spec: TrainSpec, model: PreTrainedModel) -> dict[str, Tensor]:
    """Whole tensors by name: of the adapter, or of the model in the dtype that it is saved in."""
    if spec.training.method == "full":
        tensors = model.to(getattr(torch, spec.dtype)).state_dict()
        return sharding.whole_tensors(
            {name: each for name, each in tensors.items() if name not in model.all_tied_weights_keys}
        )
    return sharding.whole_tensors({name: each for name, each in model.named_parameters() if each.requires_grad})


def _save_adapter(spec: TrainSpec, model: PreTrainedModel, tensors: dict[str, Tensor], folder: Path) -> None:
    for config in model.peft_config.values():
        config.base_model_name_or_path = f"sha256:{spec.policy.model.digest}"
        config.inference_mode = True
        if isinstance(config.target_modules, set):  # its order differs between processes
            config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder, state_dict=tensors, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def _save_model(spec: TrainSpec, model: PreTrainedModel, tensors: dict[str, Tensor], folder: Path) -> None:
    dropout.restore(model.config, loading.load_config(spec.policy.model.path, spec.trust_remote_code))
    model.save_pretrained(folder, state_dict=tensors)
    loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code).save_pretrained(folder)
