"""Small random models of a configuration's own class, to test an architecture before the model is loaded.

What decides how the model computes stays: kinds of layers, rotary embedding, head sizes, biases, scales, tied weights.
Depth, widths, numbers of heads and experts, and the vocabulary shrink. Windows, chunks and soft caps become so small
that short sequences reach them.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iris_core.modeling.dropout import nested_configs

VOCABULARY = 96
WINDOW = 16  # tokens
SOFTCAP = 2.0
MAX_LAYERS = 12
HEADS = 4
WIDTH = 64
MAX_PARAMETERS = 100_000_000

WINDOWS = re.compile(r"^(?!.*layers).*(window|chunk|local_attention|index_topk$|block_size|^original_max_position)")
_CAPS = re.compile(r"soft_?cap")
_INNER = re.compile(r"intermediate|ffn|feed_forward|dff|dim_ff|d_inner|n_inner")
_EXPERTS = re.compile(r"(num|n)_(local_|routed_)?experts$")
ACTIVE_EXPERTS = re.compile(r"experts_per_tok|^moe_top_?k$|^moe_k$|^top_k_experts$")
_HEADS = re.compile(r"^(?!.*mamba).*(n_heads?$|num_heads$|num_.*heads$|query_groups$)")
_LIKE_HIDDEN = re.compile(
    r"mamba_n_heads|mamba_headdim|mamba_dt_rank|lru_width|attention_hidden_size|time_step_rank|embedding_dim|^num_heads$"
)
_STEPS = re.compile(r"period|offset|interval|every|pattern|_step$|first_k|dense_layers|start_index")


def variants(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Small configurations of the same class. A class may not accept all of them; use the first that runs.

    Args:
        config: of the model itself; it is not changed.
    """
    for times, own_head_size, by_width in itertools.product((1, 2), (True, False), (True, False)):
        small = copy.deepcopy(config)
        for part in nested_configs(small):
            _shorten(part, times)
            _narrow(part, own_head_size, by_width)
            _tighten(part)
        yield small


def build(config: PreTrainedConfig, attention: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model in fp32 and evaluation mode, with random weights large enough to make errors visible.

    Raises:
        ValueError: it has more than MAX_PARAMETERS.
    """
    settings: dict[str, Any] = {
        "attn_implementation": attention,
        "trust_remote_code": trust_remote_code,
        "dtype": torch.float32,
    }
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(config), **settings)
    size = sum(parameter.numel() for parameter in empty.parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"a small model of its kind has {size} parameters")
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), **settings).eval()
    _randomize(model)
    return model


@torch.no_grad()
def _randomize(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _integers(config: Any) -> dict[str, int]:
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 0
    }


def _shorten(config: Any, times: int) -> None:
    """Fewer layers: `times` of each kind that lists or steps in the configuration name."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return
    lists = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == layers > 1
    }
    kinds = [repr(kind) for kind in zip(*lists.values(), strict=True)]
    needed = max((_place(kinds, kind, times) + 1 for kind in set(kinds)), default=2)
    steps = [value + 1 for name, value in _integers(config).items() if _STEPS.search(name) and value < layers]
    kept = min(layers, MAX_LAYERS, max(2, needed, *steps))
    for name, value in lists.items():
        setattr(config, name, value[:kept])
    config.num_hidden_layers = kept
    own = vars(config).get("_heterogeneity_spec")  # settings of single layers
    if own is not None:
        left = {layer: its for layer, its in own.per_layer_overrides.items() if layer < kept}
        config.per_layer_config = left or None


def _place(kinds: list[str], kind: str, times: int) -> int:
    """Index of the `times`th entry `kind`, or of the last one."""
    places = [place for place, other in enumerate(kinds) if other == kind]
    return places[:times][-1]


def _narrow(config: Any, own_head_size: bool, by_width: bool) -> None:
    """Fewer heads of the same size, fewer experts, a small vocabulary, small inner layers."""
    heads, hidden = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
    width = hidden
    if isinstance(heads, int) and isinstance(hidden, int) and hidden > WIDTH:
        by_heads = min(heads, HEADS) * (hidden // heads)
        width = WIDTH if own_head_size and vars(config).get("head_dim") else by_heads
    elif isinstance(hidden, int):
        width = min(hidden, 4 * WIDTH)
    groups = getattr(config, "n_group", None) or 1
    experts = HEADS if groups == 1 else 2 * HEADS
    for name, value in _integers(config).items():
        if "vocab_size" in name:
            setattr(config, name, min(value, VOCABULARY))
        elif _INNER.search(name) and "num" not in name:
            setattr(config, name, min(value, WIDTH))
        elif _EXPERTS.search(name):
            setattr(config, name, min(value, experts))
        elif ACTIVE_EXPERTS.search(name):
            setattr(config, name, min(value, 2))
        elif "lora_rank" in name:
            setattr(config, name, min(value, WIDTH // 2))
        elif isinstance(heads, int) and _HEADS.search(name):
            setattr(config, name, min(value, HEADS if value >= heads else HEADS // 2))
        elif name.endswith("layers_per_stack"):
            setattr(config, name, min(value, 2))
        elif by_width and _LIKE_HIDDEN.search(name) and isinstance(hidden, int) and width != hidden:
            setattr(config, name, max(1, value * int(width or 1) // hidden))
    if groups > 1:
        config.n_group, config.topk_group = 2, 1
    if isinstance(hidden, int):
        config.hidden_size = width
    _keep_special_tokens_inside(config)


def _keep_special_tokens_inside(config: Any) -> None:
    for name, value in _integers(config).items():
        if name.endswith("token_id") and value >= VOCABULARY:
            setattr(config, name, 0)


def _tighten(config: Any) -> None:
    """Makes windows, chunks and soft caps so small that short sequences with small scores reach them."""
    for name, value in _integers(config).items():
        if WINDOWS.search(name):
            setattr(config, name, min(value, WINDOW))
    for name, value in vars(config).items():
        if _CAPS.search(name) and isinstance(value, float) and value:
            setattr(config, name, math.copysign(min(abs(value), SOFTCAP), value))
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(inner for inner in rope.values() if isinstance(inner, dict))):
        if part.get("rope_type") in ("longrope", "dynamic"):
            part["original_max_position_embeddings"] = WINDOW
