"""The list of objectives, the constants that their papers publish, and the settings of the one that is trained.

A new objective gets its name here and its loss in `iris_core.objectives.losses`. The settings, the comparison, its
deployment and the tests take the list from here; a test compares the table in the documentation with it.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from iris_core.config.rules import Part

NormalizerName = Literal["unit", "anchored", "running", "batch"]
ObjectiveName = Literal["iris", "spin", "hinge", "space", "spif", "tspin", "sft", "rft"]
OBJECTIVE_NAMES: list[ObjectiveName] = list(get_args(ObjectiveName))
# compared by default: not `hinge`, which is SPIN with its other loss, nor `rft`, which needs a verifier
COMPARED: list[ObjectiveName] = [name for name in OBJECTIVE_NAMES if name not in ("hinge", "rft")]
# a member of a comparison: an objective without verdicts, or `verified`, which is iris with them
MemberName = Literal[ObjectiveName, "verified"]
WITH_VERIFIER: list[MemberName] = ["rft", "verified"]  # compared beside the others where there is a verifier
VERIFIABLE = ("iris", "spin", "space", "spif")  # these learn from verdicts where there are any
WITH_INITIAL_RESPONSES = ("tspin",)  # these also use the initial model's responses
RESPONSES = {"tspin": 3, "sft": 1}  # of a pair that a step computes; 2 for the others
PUBLISHED_BETA = {"space": 1.0, "tspin": 1.0}  # 0.1 for the others
VERIFIED_BETA = {"iris": 1.0}  # where it learns from verdicts: a push is then in proportion to the token's probability
VERIFIED_BASELINE = 0.5  # κ, the part of the share of right samples that is subtracted from verdicts
SPACE_RATIO = 1.0  # μ, synthetic responses per annotated one
SPIF_CURVATURE = 1.0  # c; the rewards at the optimum lie in [−1/c, 1/c]
TSPIN_INITIAL_WEIGHT = 0.1  # b, of the term with the initial model's responses


def default_beta(name: ObjectiveName, verified: bool) -> float:
    """The reward scale of an objective that learns from verdicts, or does not."""
    return {**PUBLISHED_BETA, **(VERIFIED_BETA if verified else {})}.get(name, 0.1)


def default_likelihood(verified: bool, order_is_one: bool) -> float:
    """λ of an objective that learns from verdicts, or does not. At order 1 an annotated response weighs w = 1."""
    return 0.0 if verified and order_is_one else 1.0


class ObjectivePart(Part):
    """The loss that tells annotated from synthetic responses.

    Change `name` alone to train another objective: each ignores the settings that it does not use, but for `verified:
    true`, which one that cannot learn from verdicts refuses.
    """

    name: ObjectiveName = Field("iris", description="The objective; see docs/objective.md.")
    beta: float = Field(
        default_factory=lambda given: default_beta(given["name"], verified=False),
        gt=0,
        le=100,
        description="Reward scale β: reward = β · log-ratio of policy to opponent; left out: 1 for space and "
        "tspin, and for iris where it learns from verdicts; else 0.1.",
    )
    normalizer: NormalizerName = Field(
        "anchored", description="How the weights of iris are normalised; see docs/objective.md."
    )
    weight_clip: float = Field(1.0, gt=0, description="Largest weight of iris, where 1 is the mean of uniform weights.")
    likelihood_weight: float = Field(
        default_factory=lambda: default_likelihood(verified=False, order_is_one=False),
        ge=0,
        description="Weight λ of the annotated log-likelihood in iris; 0: the two tilted risks alone; left out: 0 "
        "where it learns from verdicts at order 1, else 1.",
    )
    opponent: Literal["previous", "initial"] = Field(
        "previous",
        description="Whose log-probabilities the rewards refer to: the previous iteration's model or the first.",
    )
    verified: bool | None = Field(
        None,
        description="Learn from the verdicts on several responses to a prompt (iris, spin, space, spif); left out: "
        "true where there is a verifier.",
    )
    verified_weight: float = Field(
        3.0, gt=0, description="Weight ρ of the responses that the verifier judged, against the annotated ones."
    )

    @property
    def learns_from_verdicts(self) -> bool:
        """Whether it trains on all samples of a prompt, by their verdicts."""
        return self.name == "rft" or bool(self.verified)

    def resolved(self, judged: bool) -> ObjectivePart:
        """These settings with `verified` set where responses are `judged`, and None where they are not, and their β.

        Raises:
            ValueError: verdicts are needed, and there is no verifier.
        """
        if not judged and (self.verified or self.name == "rft"):
            needs = "verified is true" if self.verified else f"name is {self.name}"
            raise ValueError(f"{needs}, and verification.kind is none: set verification.kind, or change the objective")
        if self.verified and not (self.name in VERIFIABLE or self.name == "rft"):
            raise ValueError(
                f"verified is true, and {self.name} does not learn from verdicts: leave objective.verified out, or "
                f"choose one of {', '.join(VERIFIABLE)}"
            )
        learns = judged and self.name in VERIFIABLE and self.verified is not False
        beta = self.beta if "beta" in self.model_fields_set else default_beta(self.name, learns)
        return self.model_copy(update={"verified": learns if judged else None, "beta": beta})

    def weighed(self, order_is_one: bool) -> ObjectivePart:
        """These settings with their λ, after `resolved`."""
        if "likelihood_weight" in self.model_fields_set:
            return self
        return self.model_copy(update={"likelihood_weight": default_likelihood(bool(self.verified), order_is_one)})

    @model_serializer(mode="wrap")
    def _without_verifier(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the settings for verdicts that do not count: other values of them are the same training.

        Without a verifier there are none, and keys are those of versions without them.
        """
        content: dict[str, Any] = serialize(self)
        unused = {name for name in ("verified", "verified_weight") if not self._counts(name)}
        return {name: value for name, value in content.items() if name not in unused}

    def _counts(self, name: str) -> bool:
        return self.verified is not None and (name == "verified" or self.learns_from_verdicts)
