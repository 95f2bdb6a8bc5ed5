"""Batches of prompts of different lengths, padded on the left where the model ignores padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from iris_core.modeling.attention.interface import GROUPED

PROBE, PADDING = 8, 8  # tokens
NOISE = 0.02  # total variation distance; rounding in bfloat16 causes less


def batches(model: PreTrainedModel, prompts: Sequence[list[int]], size: int) -> list[list[int]]:
    """Batches of prompts to generate together: in their order, or of equal length where `model` sees padding.

    Args:
        model: with or without a PEFT adapter.
        prompts: token ids.
        size: most prompts of a batch.

    Returns:
        Indices of the prompts of each batch.
    """
    indices = list(range(len(prompts)))
    groups = [indices]
    if sees_padding(model):
        indices.sort(key=lambda index: len(prompts[index]))
        by_length = itertools.groupby(indices, key=lambda index: len(prompts[index]))
        groups = [list(group) for _, group in by_length]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


@torch.inference_mode()
def sees_padding(model: PreTrainedModel) -> bool:
    """Whether masked padding changes what `model` generates: in some classes it enters a state or positions."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner.config._attn_implementation == GROUPED and not inner._is_stateful:
        return False  # these apply masks and positions as given
    alone, padded = _probabilities(model, 0), _probabilities(model, PADDING)
    return (alone - padded).abs().sum(-1).max().item() / 2 > NOISE


def _probabilities(model: PreTrainedModel, padding: int) -> torch.Tensor:
    """Probabilities of the next three tokens, shape [3, vocabulary]."""
    ids = [0] * padding + list(range(1, PROBE + 1))
    found = model.generate(
        input_ids=torch.tensor([ids], device=model.device),
        attention_mask=torch.tensor([[0] * padding + [1] * PROBE], device=model.device),
        max_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(found.logits).float().softmax(dim=-1)
