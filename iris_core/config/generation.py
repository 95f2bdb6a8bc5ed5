"""The settings of sampling: a part of the experiment (`iris_core.config.experiment`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from iris_core.config.objective import ObjectivePart
from iris_core.config.rules import Part, is_none

VERIFIED_SAMPLES = 4  # where verdicts are learned from, and nothing is set; see benchmarks/study/verified


class GenerationPart(Part):
    """How the opponent answers the prompts."""

    backend: Literal["auto", "vllm", "transformers"] = Field("auto", description="auto: vLLM where it is installed.")
    temperature: float = Field(1.0, ge=0, le=2, description="Sampling temperature; 1 samples the opponent itself.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling mass; 1 samples the opponent itself.")
    max_new_tokens: int = Field(256, ge=1, description="Longest synthetic response, in tokens.")
    shard_size: int = Field(
        1024,
        ge=1,
        description="Prompts per shard. A resumed run keeps whole shards; GPUs share them.",
    )
    samples: int | None = Field(
        None,
        ge=1,
        le=64,
        exclude_if=is_none,  # as before there was this setting: old keys stay
        description="Responses to each prompt that is trained on, where the objective learns from verdicts; left out: "
        "4 there. Other objectives have one response to a prompt.",
    )

    @property
    def responses(self) -> int:
        """To each prompt that is trained on."""
        return self.samples or 1

    @property
    def judged(self) -> bool:
        """Whether they are for verdicts, so that prompts need no annotation: only then `samples` is set."""
        return self.samples is not None

    def resolved(self, objective: ObjectivePart) -> GenerationPart:
        """These settings with `samples` set where `objective` learns from verdicts.

        Raises:
            ValueError: the responses to a prompt would show no difference.
        """
        if not objective.learns_from_verdicts:
            return self.model_copy(update={"samples": None}) if self.samples == 1 else self
        samples = self.samples or VERIFIED_SAMPLES
        if samples == 1 and objective.name != "rft":
            raise ValueError(
                f"generation.samples is 1, and {objective.name} learns from a wrong response only where the prompt has "
                f"a right one, too: raise it (left out: {VERIFIED_SAMPLES}), or set objective.verified: false"
            )
        if samples > 1 and self.temperature == 0:
            raise ValueError(
                f"generation.temperature is 0, and then all {samples} responses to a prompt are equal: raise it; 1 "
                "samples the opponent itself"
            )
        return self.model_copy(update={"samples": samples})
