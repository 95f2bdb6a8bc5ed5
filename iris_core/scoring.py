"""Log-probabilities of responses under a model, by packed prefix-shared rows: the numerics of training and measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from iris_core.attention import no_mask
from iris_core.errors import ModelError
from iris_core.layout import Layout
from iris_core.logprobs import token_logprobs
from iris_core.packing import Group, Row, build_row, pack


def response_logprobs(model: PreTrainedModel, row: Row) -> Tensor:
    """Σ_t log p(y_t | x, y_<t) of every response in `row`, in nats, fp32.

    Args:
        model: a causal language model, with or without a PEFT adapter.
        row: from `build_row`, on the model's device.

    Returns:
        Shape [groups, responses per group]; 0 for an empty response.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = row["input_ids"]
    hidden = causal.base_model(
        input_ids=ids[None],
        position_ids=row["position_ids"][None],
        attention_mask=no_mask(),
        use_cache=False,
        layout=Layout(row["parts"], ids.device),
    ).last_hidden_state[0]
    logprobs = token_logprobs(hidden[row["sources"]], targets=row["targets"], **_head(causal))
    lengths = row["lengths"]  # always added up in the same order, unlike `index_add` on a GPU
    sums = torch.segment_reduce(logprobs, "sum", lengths=lengths.flatten(), unsafe=True)
    return sums.view(lengths.shape)


def _head(model: PreTrainedModel) -> dict[str, Any]:
    """What makes logits of hidden states: the output embedding, and its scale and soft cap where the model has them.

    Raises:
        ModelError: the output layer has a bias.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    if hasattr(head, "get_delta_weight"):  # LoRA on the output layer
        weight = head.weight + sum(map(head.get_delta_weight, head.active_adapters))
    else:
        weight = head.weight
    if getattr(head, "bias", None) is not None:
        raise ModelError(
            f"model.path: the output layer of {type(model).__name__} has a bias, which is not supported: use another model"
        )
    scale = getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1
    )
    softcap = getattr(config, "final_logit_softcapping", None)
    return {"weight": weight, "scale": float(scale), "softcap": softcap}


@torch.no_grad()
def score(
    model: PreTrainedModel,
    groups: Sequence[Group],
    tokens_per_row: int,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_row: Callable[[int], None] = lambda groups: None,
) -> Tensor:
    """Log-probabilities of the responses of each group, forward only.

    Args:
        model: the model, in evaluation mode.
        groups: prompts with as many responses each.
        tokens_per_row: packing budget.
        precision: context manager of the training step (autocast or none).
        on_row: called with the number of groups behind us after each row.

    Returns:
        Shape [groups, responses per group] on the CPU, fp32.
    """
    result = torch.empty(len(groups), len(groups[0].responses))
    for indices in pack([len(group) for group in groups], tokens_per_row):
        row = to_device(build_row([groups[index] for index in indices], indices), model.device)
        with precision():
            result[indices] = response_logprobs(model, row).cpu()
        on_row(len(indices))
    return result


def to_device(row: Row, device: torch.device) -> Row:
    """`row` with its tensors on `device`."""
    moved = {
        name: value.to(device, non_blocking=True)
        for name, value in row.items()
        if isinstance(value, Tensor)
    }
    return {**row, **moved}
