"""The settings of the order α: a part of the experiment (`iris_core.config.experiment`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from iris_core.config.rules import Part

VERIFIED_SCHEDULE = {"kind": "constant", "max_order": 1.0, "min_order": 1.0}  # measured, see docs/objective.md


class SchedulePart(Part):
    """How the order α moves over the iterations.

    In verified self-play α stays 1 where neither rule nor orders are set. So these three have no default in the schema,
    which forms would fill in.
    """

    kind: Literal["adaptive", "constant", "linear", "cosine"] = Field(
        default_factory=lambda: "adaptive",
        description="Rule for the next order. Left out with both orders, where objective.verified is true: constant at "
        "1; else adaptive.",
    )
    max_order: float = Field(
        default_factory=lambda: 2.0, gt=-50, lt=50, description="α of iteration 0; left out: 2, or as kind says."
    )
    min_order: float = Field(default_factory=lambda: 1.0, gt=-50, lt=50, description="α near convergence; left out: 1.")
    allow_rising: bool = Field(False, description="Let the adaptive order rise again when the gap grows.")
    stop_when_converged: bool = Field(
        False,
        description="End the loop when training changed the policy but not on held-out pairs; see docs/objective.md.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> SchedulePart:
        if self.min_order > self.max_order:
            raise ValueError(
                f"min_order is {self.min_order}, above max_order {self.max_order}: lower schedule.min_order"
            )
        return self

    @property
    def is_one(self) -> bool:
        """Whether the order is 1 in every iteration."""
        return self.kind == "constant" and self.max_order == 1

    def resolved(self, verified: bool) -> SchedulePart:
        """These settings, with the order of verified self-play where that is trained and no order is set."""
        given = self.model_fields_set
        if not verified or given & VERIFIED_SCHEDULE.keys():
            return self
        return self.model_construct(_fields_set=set(given), **{**self.model_dump(), **VERIFIED_SCHEDULE})
