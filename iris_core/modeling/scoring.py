"""Log-probabilities of responses under a model, by the same computation in training and in measurement."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import pad
from transformers import PreTrainedModel

from iris_core.config import Packing
from iris_core.data.packing import Group, Row, build_row, build_rows, separate_sequences
from iris_core.execution import distributed
from iris_core.modeling.attention.interface import no_mask
from iris_core.modeling.attention.layout import Layout
from iris_core.modeling.kernels.logprobs import token_logprobs

T = TypeVar("T")

# names that configurations have for what happens to logits
SCALES = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


IDLE = build_row([Group([0], ([0],))], [0])  # for a rank without a row, while the others gather a layer's weights


def response_logprobs(model: PreTrainedModel, row: Row) -> Tensor:
    """Σ_t log p(y_t | x, y_<t) of each response in `row`, or of both parts of one that is cut, in nats, fp32.

    Args:
        model: a causal language model, with or without a PEFT adapter.
        row: from `build_row`, on the model's device.

    Returns:
        Shape [groups, sums per group], as `Group.sums` counts them; 0 for an empty response.
    """
    causal = causal_of(model)
    if isinstance(causal, FSDPModule):
        sums: Tensor = causal(row)  # `iris_core.modeling.sharding` gives it this forward
        return sums
    return sums_of_logprobs(causal, row, functools.partial(head_logprobs, causal))


def causal_of(model: Any) -> Any:
    """The causal language model itself, without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def sums_of_logprobs(causal: PreTrainedModel, row: Row, head: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """As `response_logprobs`, with the lm_head as a function of hidden states and targets (see `head_logprobs`)."""
    hidden = (_packed if row.packing == "packed" else _separate)(causal, row)
    logprobs = head(hidden, row.targets)
    # sums in a fixed order, unlike `index_add` on a GPU
    sums = torch.segment_reduce(logprobs, "sum", lengths=row.lengths.flatten(), unsafe=True)
    return sums.view(row.lengths.shape)


def _packed(causal: PreTrainedModel, row: Row) -> Tensor:
    """Hidden states that predict the responses, shape [response tokens, hidden size], from one forward."""
    hidden = _body(causal)(
        input_ids=row.input_ids[None],
        position_ids=row.position_ids[None],
        attention_mask=no_mask(),
        use_cache=False,
        layout=Layout(row.segments, row.input_ids.device),
    ).last_hidden_state[0]
    return hidden[row.sources]


def _separate(causal: PreTrainedModel, row: Row) -> Tensor:
    """The same from a plain causal forward of each sequence, without padding: right for every causal model."""
    body = _body(causal)
    hidden = [
        body(input_ids=ids[None], use_cache=False).last_hidden_state[0, sources]
        for ids, sources in separate_sequences(row)
    ]
    return torch.cat(hidden)


def _body(causal: PreTrainedModel) -> Any:
    """The model without its lm_head."""
    body = causal.base_model
    return causal.model if body is causal else body


def head_logprobs(causal: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target by the lm_head: weight, and bias, scale and soft cap where the model has them.

    Args:
        causal: the model, without PEFT's wrapper.
        hidden: shape [tokens, hidden size].
        targets: token ids, shape [tokens].
    """
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    weight, bias = head.weight, getattr(head, "bias", None)
    if hasattr(head, "get_delta_weight"):  # LoRA on the lm_head
        weight = weight + sum(map(head.get_delta_weight, head.active_adapters))
    if bias is not None:
        hidden, weight = _with_bias(hidden, weight, bias)
    scale, softcap = _scale(config), _first(config, SOFTCAPS)
    return token_logprobs(hidden, weight, targets, scale, softcap)


def _with_bias(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and weight with the bias as one more column; zeros keep the width a multiple of 8."""
    ones = hidden.new_ones(len(hidden), 1)
    return pad(torch.cat([hidden, ones], 1), (0, 7)), pad(
        torch.cat([weight, bias[:, None].to(weight.dtype)], 1), (0, 7)
    )


def _scale(config: Any) -> float:
    """The factor on hidden · weightᵀ (Cohere, Granite, Falcon-H1)."""
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
    """Log-probabilities of the responses of each group, forward only; ranks share the rows, each gets all results.

    Args:
        model: the model, in evaluation mode.
        groups: all with the same number of responses.
        tokens_per_row: budget of a row.
        precision: context manager of the training step (autocast or none).
        on_row: called after each row, or one on each rank, with the number of groups.
        packing: how rows are computed.

    Returns:
        Shape [groups, sums per group] on the CPU, fp32.
    """
    result = torch.zeros(len(groups), len(groups[0].sums) if groups else 0)
    ranks = distributed.world_size()
    rows = build_rows(groups, range(len(groups)), tokens_per_row, packing, ranks)
    for number, row in enumerate(own(rows)):
        with precision():
            result[row.pairs] = response_logprobs(model, row.to(model.device)).cpu()
        on_row(sum(len(other.pairs) for other in rows[number * ranks : (number + 1) * ranks]))
    if waits(model, rows):
        with precision():
            response_logprobs(model, IDLE.to(model.device))
    distributed.all_reduce(result)
    return result


def own(rows: Sequence[T]) -> Sequence[T]:
    """Those of `rows`, or of results with one for each row, that are this rank's."""
    return rows[distributed.rank() :: distributed.world_size()]


def waits(model: PreTrainedModel, rows: Sequence[Row]) -> bool:
    """Whether this rank has a row less than others that need it to compute one: weights are gathered from all ranks."""
    last = len(rows) % distributed.world_size()
    return isinstance(causal_of(model), FSDPModule) and 0 < last <= distributed.rank()
