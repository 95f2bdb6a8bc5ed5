"""GPU-hours of a run's stages, from throughputs that were measured; where none was, a stage is not estimated.

Training is matmuls: their number follows from the sizes of the model and the tokens, and their speed is taken as the
share of the card's peak that the step reached where it was measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from iris_core.config import Experiment
from iris_core.config.objective import RESPONSES
from iris_core.pipeline.sizes import Sizes

# dense bf16 TFLOP/s on the data sheets of NVIDIA and AMD, of SXM modules where nothing else is said; where a sheet
# gives the number with sparsity, half of it
PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "MI300X": 1307.0,
}
MEASURED_PARAMETERS = 7.2e9  # Mistral-7B, LoRA, two rows of 8,064 tokens: benchmarks/results/gpu.json
MEASURED_SHARE = 434 / 989  # TFLOP/s, the slowest of three steps on an H200, of its peak
NEAR = 4.0  # a model's size may differ by this factor from the measured one's

Hours = dict[str, float | str]  # GPU-hours by stage over all iterations, or why they are not estimated


@dataclass(frozen=True)
class Work:
    """What a run computes, without regard to the device.

    Attributes:
        tokens: of a pair at most, as they are trained.
        scored: of a pair at most, as the opponent scores it.
        pairs: in all iterations, each as often as an iteration has it.
    """

    tokens: int
    scored: int
    pairs: int


def trained_responses(experiment: Experiment) -> int:
    """Responses to a prompt that a step computes: the annotated one and, by verdicts, all samples of the opponent."""
    if experiment.objective.learns_from_verdicts:
        return 1 + experiment.generation.responses
    return RESPONSES.get(experiment.objective.name, 2)


def pair_tokens(experiment: Experiment, responses: int, separate: bool) -> int:
    """Tokens that a step computes for the longest pair that the experiment takes."""
    data = experiment.data
    prompts = responses if separate else 1
    generated = (responses - 1) * experiment.generation.max_new_tokens
    return prompts * data.max_prompt_tokens + data.max_response_tokens + generated


def work_of(experiment: Experiment, pairs: int) -> Work:
    """The work of all iterations with `pairs` to train on, prompts without annotation included."""
    separate = experiment.training.packing == "separate"
    iterations = experiment.iterations
    mixed = iterations - 1 if experiment.data.mix_previous else 0  # these train on two synthetic responses of a pair
    responses = trained_responses(experiment)
    scored = responses if experiment.objective.learns_from_verdicts else 2
    return Work(
        tokens=pair_tokens(experiment, responses, separate),
        scored=pair_tokens(experiment, scored, separate),
        pairs=pairs * (iterations + mixed),
    )


def hours(experiment: Experiment, sizes: Sizes, card: str, pairs: int | None) -> tuple[Hours, list[str]]:
    """GPU-hours by stage, and what they assume.

    Args:
        experiment: the settings.
        sizes: of the model.
        card: the name of the GPU.
        pairs: pairs that are trained on, prompts without annotation included; None: not known yet.
    """
    unknown: Hours = {
        "generate": "not estimated: no sampling rate on a GPU was measured",
        "evaluate": "not estimated: no evaluation on a GPU was measured",
    }
    peak = next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", card)), None)
    unread = "data.prompts_path is set" if experiment.data.max_pairs else "data.max_pairs is not set"
    if reason := _obstacle(sizes, card, peak, pairs, unread):
        return {"train": f"not estimated: {reason}", **unknown}, []
    assert peak is not None
    assert pairs is not None
    work, training = work_of(experiment, pairs), experiment.training
    steps = training.epochs * flop_per_weight(training.method, training.gradient_checkpointing)
    flop = sizes.matrices * work.pairs * (steps * work.tokens + 2 * work.scored)
    found = flop / (MEASURED_SHARE * peak * 1e12) / 3600
    assumptions = [
        f"training: {MEASURED_SHARE:.0%} of the card's {peak:.0f} dense bf16 TFLOP/s, as a step of Mistral-7B with "
        "LoRA reached on an H200; the same on any number of GPUs, and for all weights as for an adapter",
        f"each of {work.pairs:,} pairs has all {work.tokens:,} tokens that the recipe allows; real ones are shorter",
    ]
    return {"train": found, **unknown}, assumptions


def flop_per_weight(method: str, checkpointing: bool) -> int:
    """FLOP of a training step for each token and weight, 2 a matmul.

    The matmuls are the forward pass, the gradient of its input, the gradient of the weight where it is trained, and the
    forward pass once more where it is recomputed.
    """
    return 2 * (2 + (method == "full") + checkpointing)


def _obstacle(sizes: Sizes, card: str, peak: float | None, pairs: int | None, unread: str) -> str | None:
    if peak is None:
        return f"the bf16 peak of {card} is not in the table"
    if pairs is None:
        return f"{unread}, and the data is not read yet"
    if sizes.experts:
        return "no model with experts was measured"
    if not 1 / NEAR <= sizes.parameters / MEASURED_PARAMETERS <= NEAR:
        return (
            f"models of about {MEASURED_PARAMETERS / 1e9:.1f} B parameters were measured, this one has "
            f"{sizes.parameters / 1e9:.2f} B"
        )
    return None
