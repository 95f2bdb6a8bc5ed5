"""Checks in `prepare`, before any long work, that a model fits the pairs of an experiment, and in which rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from iris_core.common.errors import DataError, ModelError
from iris_core.config import Packing
from iris_core.data.pairs import Pair
from iris_core.modeling import architectures
from iris_core.modeling.dropout import nested_configs
from iris_core.modeling.tiny import WINDOWS
from iris_core.pipeline.specs import PrepareSpec

LENGTHS = ("max_position_embeddings", "max_seq_len")  # names that configurations have for their longest sequence
ORIGINAL = "original_max_position_embeddings"


class Choice(NamedTuple):
    """The kind of rows, and why they are not packed.

    Attributes:
        packing: kind of rows.
        reason: None where rows are packed, or separate by request.
    """

    packing: Packing
    reason: str | None

    @property
    def warnings(self) -> list[str]:
        """For the report: separate rows are slower."""
        if self.reason is None:
            return []
        return [f"training.packing: separate rows, which are slower than packed ones: {self.reason}"]


def prove(config: PreTrainedConfig, spec: PrepareSpec) -> architectures.Proof:
    """Finds out which rows the model computes right, as `spec` trains it.

    Raises:
        ModelError: none.
    """
    proof = architectures.probe(config, spec.lora, spec.gradient_checkpointing, spec.model.trust_remote_code)
    if proof.separate is not None:
        raise ModelError(
            f"model.path: {spec.model.path} ({config.model_type}) cannot be trained: {proof.separate}; "
            "use another model"
        )
    return proof


def choose_packing(
    config: PreTrainedConfig, proof: architectures.Proof, spec: PrepareSpec, pairs: Sequence[Pair]
) -> Choice:
    """Packed rows where they are proved right for the model and these pairs, else separate sequences.

    Raises:
        DataError: a pair is longer than the model takes.
        ModelError: `training.packing` is "packed", and packed rows are not right.
    """
    longest = _longest(pairs, spec.max_new_tokens)
    check_length(config, longest)
    if spec.packing == "separate":
        return Choice("separate", None)
    reason = proof.packed
    if reason and proof.short is None and longest <= (limit := window(config)):
        reason = None
    elif reason and proof.short is None:
        reason = f"a prompt with its response has up to {longest} tokens, beyond a window or limit of {limit}"
    if reason and spec.packing == "packed":
        raise ModelError(
            f"training.packing: packed rows are wrong for {spec.model.path} ({config.model_type}): {reason}; "
            "set it to auto"
        )
    return Choice("separate" if reason else "packed", reason)


def check_length(config: PreTrainedConfig, longest: int) -> None:
    """Refuses pairs that are longer than the model takes.

    Args:
        config: of the model.
        longest: tokens of the longest prompt with its response.

    Raises:
        DataError: it does not fit.
    """
    most, name = _most(config.get_text_config(decoder=True))
    if most is not None and longest > most:
        raise DataError(
            f"data.path: a prompt with its response has up to {longest} tokens, the model takes {most} ({name}): lower "
            "data.max_prompt_tokens, data.max_response_tokens or generation.max_new_tokens, "
            "and set data.on_invalid to drop"
        )


def window(config: PreTrainedConfig) -> float:
    """The smallest window, chunk or other limit in `config` that changes what a token sees."""
    found = [float("inf")]
    for part in nested_configs(config):
        found += [
            value
            for name, value in vars(part).items()
            if WINDOWS.search(name) and isinstance(value, int) and not isinstance(value, bool) and value
        ]
        found += [rope[ORIGINAL] for rope in _ropes(part) if rope.get(ORIGINAL)]
    return min(found)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Settings of the rotary embedding: one dictionary, or one for each kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    return [settings, *(inner for inner in settings.values() if isinstance(inner, dict))]


def _most(config: Any) -> tuple[int | None, str]:
    """The longest sequence that a model takes, with a scaled rotary embedding, and the name of the setting."""
    for name in LENGTHS:
        most = getattr(config, name, None)
        if isinstance(most, int) and most > 0:
            scaled = [
                int(rope[ORIGINAL] * rope["factor"])
                for rope in _ropes(config)
                if rope.get(ORIGINAL) and rope.get("factor") and rope.get("rope_type") != "dynamic"
            ]
            return max([most, *scaled]), name
    return None, ""


def _longest(pairs: Sequence[Pair], max_new_tokens: int) -> int:
    return max(len(pair.prompt_ids) + max(len(pair.response_ids), max_new_tokens) for pair in pairs)
