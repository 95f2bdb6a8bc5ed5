"""Prompts of different lengths in one batch: behind padding on the left, where the model does not take it for text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from iris_core.modeling.attention.interface import GROUPED

PROBE, PADDING = 8, 8  # tokens
NOISE = 0.02  # total variation distance that rounding in bfloat16 stays below


def batches(model: PreTrainedModel, prompts: Sequence[list[int]], size: int) -> list[list[int]]:
    """Which prompts generate together: `size` of them in their order, or of equal length where `model` sees padding.

    Args:
        model: with or without a PEFT adapter.
        prompts: token ids.
        size: most prompts of a batch.
    """
    places = list(range(len(prompts)))
    groups = [places]
    if sees_padding(model):
        places.sort(key=lambda place: len(prompts[place]))
        alike = itertools.groupby(places, key=lambda place: len(prompts[place]))
        groups = [list(group) for _, group in alike]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


@torch.inference_mode()
def sees_padding(model: PreTrainedModel) -> bool:
    """Whether what `model` generates changes behind masked padding, which some classes let into a state or into positions."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner.config._attn_implementation == GROUPED and not inner._is_stateful:
        return False  # they take masks and positions as they are told
    alone, padded = _probabilities(model, 0), _probabilities(model, PADDING)
    return (alone - padded).abs().sum(-1).max().item() / 2 > NOISE


def _probabilities(model: PreTrainedModel, padding: int) -> torch.Tensor:
    """Of the next token and the two after it, shape [3, vocabulary]."""
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
