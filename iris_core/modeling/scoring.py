"""Log-probabilities of responses under a model: the numerics of training and measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from iris_core.config.experiment import Packing
from iris_core.data.packing import Group, Row, build_rows, sequences
from iris_core.modeling.attention.interface import no_mask
from iris_core.modeling.attention.layout import Layout
from iris_core.modeling.kernels.logprobs import token_logprobs

# how configurations call what happens to logits
SCALES = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def response_logprobs(model: PreTrainedModel, row: Row) -> Tensor:
    """Σ_t log p(y_t | x, y_<t) of every response in `row`, or of both pieces of one that is cut, in nats, fp32.

    Args:
        model: a causal language model, with or without a PEFT adapter.
        row: from `build_row`, on the model's device.

    Returns:
        Shape [groups, sums per group], as `Group.sums` counts them; 0 for an empty response.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = (_packed if row["packing"] == "packed" else _separate)(causal, row)
    logprobs = head_logprobs(causal, hidden, row["targets"])
    lengths = row["lengths"]  # always added up in the same order, unlike `index_add` on a GPU
    sums = torch.segment_reduce(logprobs, "sum", lengths=lengths.flatten(), unsafe=True)
    return sums.view(lengths.shape)


def _packed(causal: PreTrainedModel, row: Row) -> Tensor:
    """Hidden states that predict the responses, shape [response tokens, hidden size], from one forward."""
    ids = row["input_ids"]
    hidden = _body(causal)(
        input_ids=ids[None],
        position_ids=row["position_ids"][None],
        attention_mask=no_mask(),
        use_cache=False,
        layout=Layout(row["parts"], ids.device),
    ).last_hidden_state[0]
    return hidden[row["sources"]]


def _separate(causal: PreTrainedModel, row: Row) -> Tensor:
    """The same from a plain causal forward of each sequence, without padding: no model can confuse them."""
    body = _body(causal)
    found = [body(input_ids=ids[None], use_cache=False).last_hidden_state[0, places] for ids, places in sequences(row)]
    return torch.cat(found)


def _body(causal: PreTrainedModel) -> Any:
    """The model without its output layer."""
    body = causal.base_model
    return causal.model if body is causal else body


def head_logprobs(causal: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target by the output layer: its weight, and bias, scale and soft cap where the model has them.

    Args:
        causal: the model, without PEFT's wrapper.
        hidden: shape [tokens, hidden size].
        targets: token ids, shape [tokens].
    """
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    weight, bias = head.weight, getattr(head, "bias", None)
    if hasattr(head, "get_delta_weight"):  # LoRA on the output layer
        weight = weight + sum(map(head.get_delta_weight, head.active_adapters))
    if bias is not None:
        hidden, weight = _with_bias(hidden, weight, bias)
    scale, softcap = _scale(config), _first(config, SOFTCAPS)
    return token_logprobs(hidden, weight, targets, scale, softcap)


def _with_bias(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and weight that have the bias as a further column; zeros keep the width a multiple of 8."""
    ones = hidden.new_ones(len(hidden), 1)
    return pad(torch.cat([hidden, ones], 1), (0, 7)), pad(
        torch.cat([weight, bias[:, None].to(weight.dtype)], 1), (0, 7)
    )


def _scale(config: Any) -> float:
    """What hidden · weightᵀ is multiplied by (Cohere, Granite, Falcon-H1)."""
    return (_first(config, SCALES) or 1.0) / (_first(config, DIVISORS) or 1.0)


def _first(config: Any, names: Sequence[str]) -> float | None:
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if value), None)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    groups: Sequence[Group],
    tokens_per_row: int,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_row: Callable[[int], None] = lambda groups: None,
    packing: Packing = "packed",
) -> Tensor:
    """Log-probabilities of the responses of each group, forward only.

    Args:
        model: the model, in evaluation mode.
        groups: prompts with as many responses each.
        tokens_per_row: budget of a row.
        precision: context manager of the training step (autocast or none).
        on_row: called with the number of groups behind us after each row.
        packing: how rows are computed.

    Returns:
        Shape [groups, sums per group] on the CPU, fp32.
    """
    result = torch.empty(len(groups), len(groups[0].sums) if groups else 0)
    for row in build_rows(groups, range(len(groups)), tokens_per_row, packing):
        row = to_device(row, model.device)
        with precision():
            result[row["pairs"].cpu()] = response_logprobs(model, row).cpu()
        on_row(len(row["pairs"]))
    return result


def to_device(row: Row, device: torch.device) -> Row:
    """`row` with its tensors on `device`."""
    moved = {name: value.to(device, non_blocking=True) for name, value in row.items() if isinstance(value, Tensor)}
    return {**row, **moved}
