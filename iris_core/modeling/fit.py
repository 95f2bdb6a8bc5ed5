"""Whether a model takes the pairs of an experiment, and in which rows: said in `prepare`, before anything heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from iris_core.common.errors import DataError, ModelError
from iris_core.config.experiment import Packing
from iris_core.data.pairs import Pair
from iris_core.modeling import architectures
from iris_core.modeling.dropout import parts
from iris_core.modeling.tiny import WINDOWS
from iris_core.pipeline.specs import PrepareSpec

LENGTHS = ("max_position_embeddings", "max_seq_len")  # how configurations call what they allow


class Choice(NamedTuple):
    """Which rows are right, and why they are not packed ones (None where they are, or where nobody asked for them)."""

    packing: Packing
    reason: str | None

    @property
    def warnings(self) -> list[str]:
        """What somebody who waits for the training should know."""
        if self.reason is None:
            return []
        return [f"training.packing: separate rows, which are slower than packed ones: {self.reason}"]


def prove(config: PreTrainedConfig, spec: PrepareSpec) -> architectures.Proof:
    """What rows are right for the model as `spec` trains it.

    Raises:
        ModelError: none are.
    """
    proof = architectures.probe(config, spec.lora, spec.gradient_checkpointing, spec.model.trust_remote_code)
    if proof.separate is not None:
        raise ModelError(
            f"model.path: {spec.model.path} ({config.model_type}) cannot be trained: {proof.separate}; use another model"
        )
    return proof


def choose_packing(
    config: PreTrainedConfig, proof: architectures.Proof, spec: PrepareSpec, pairs: Sequence[Pair]
) -> Choice:
    """Packed rows where they are proved for the model and these pairs, else separate sequences.

    Raises:
        DataError: a pair is longer than the model takes.
        ModelError: `training.packing` asks for packed rows, and they are not right.
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
            f"training.packing: packed rows are wrong for {spec.model.path} ({config.model_type}): {reason}; set it to auto"
        )
    return Choice("separate" if reason else "packed", reason)


def check_length(config: PreTrainedConfig, longest: int) -> None:
    """Finds out whether the longest prompt with its response fits the model.

    Raises:
        DataError: it does not.
    """
    most, name = _most(config.get_text_config(decoder=True))
    if most is not None and longest > most:
        raise DataError(
            f"data.path: a prompt with its response has up to {longest} tokens, the model takes {most} ({name}): lower "
            "data.max_prompt_tokens, data.max_response_tokens or generation.max_new_tokens, and set data.on_invalid to drop"
        )


def window(config: PreTrainedConfig) -> float:
    """The smallest window, chunk or other limit in `config` that changes what a token sees."""
    found = [float("inf")]
    for part in parts(config):
        found += [
            value
            for name, value in vars(part).items()
            if WINDOWS.search(name) and isinstance(value, int) and not isinstance(value, bool) and value
        ]
        found += [rope[ORIGINAL] for rope in _ropes(part) if rope.get(ORIGINAL)]
    return min(found)


ORIGINAL = "original_max_position_embeddings"


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Settings of the rotary embedding: one, or one for each kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    return [settings, *(inner for inner in settings.values() if isinstance(inner, dict))]


def _most(config: Any) -> tuple[int | None, str]:
    """Tokens that a model reads at once, and the setting that says so; rotary embeddings can be stretched beyond it."""
    for name in LENGTHS:
        most = getattr(config, name, None)
        if isinstance(most, int) and most > 0:
            stretched = [
                int(rope[ORIGINAL] * rope["factor"])
                for rope in _ropes(config)
                if rope.get(ORIGINAL) and rope.get("factor") and rope.get("rope_type") != "dynamic"
            ]
            return max([most, *stretched]), name
    return None, ""


def _longest(pairs: Sequence[Pair], max_new_tokens: int) -> int:
    return max(len(pair.prompt_ids) + max(len(pair.response_ids), max_new_tokens) for pair in pairs)
