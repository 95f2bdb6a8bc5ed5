"""The policy of an iteration: its start, its numerics, and how it is saved."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedModel

from iris_core.common.files import remove
from iris_core.modeling import dropout, loading
from iris_core.modeling.patches.lora import fuse_lora
from iris_core.pipeline.specs import TrainSpec


def trainable_policy(spec: TrainSpec) -> PreTrainedModel:
    """The policy at the start of the iteration, in evaluation mode: all weights trainable, or the adapter only."""
    dtype = weights_dtype(spec)
    model = loading.load_policy(spec.policy, dtype, trainable=True, trust_remote_code=spec.trust_remote_code)
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
    return model


def weights_dtype(spec: TrainSpec) -> str:
    """Weights that are trained are in fp32, since bfloat16 rounds small updates away."""
    return "float32" if spec.training.method == "full" else spec.dtype


def precision(spec: TrainSpec) -> functools.partial[AbstractContextManager[object]]:
    """Context manager around each forward: autocast where weights are in fp32 and matmuls are not to be."""
    if spec.training.method == "full" and spec.dtype == "bfloat16":
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
    """Saves what was trained as safetensors: the adapter, or the whole model with its tokenizer.

    Returns:
        The name of the output, and its folder.
    """
    for name in ("adapter", "model"):  # of an earlier attempt
        remove(out / name)
    if spec.training.method == "lora":
        folder = out / "adapter"
        for config in model.peft_config.values():
            config.base_model_name_or_path = f"sha256:{spec.policy.model.digest}"
            config.inference_mode = True
            if isinstance(config.target_modules, set):  # its order differs between processes
                config.target_modules = sorted(config.target_modules)
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        return "adapter", folder
    folder = out / "model"
    dropout.restore(model.config, loading.load_config(spec.policy.model.path, spec.trust_remote_code))
    model.to(getattr(torch, spec.dtype)).save_pretrained(folder)
    loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code).save_pretrained(folder)
    return "model", folder
