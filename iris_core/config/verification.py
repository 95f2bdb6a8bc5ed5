"""The settings of the verifier: a part of the experiment (`iris_core.config.experiment`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from iris_core.config.rules import Part, PathText

VerifierKind = Literal["none", "answer", "math", "sql", "json_schema", "command"]
COMPARING: tuple[VerifierKind, ...] = ("answer", "math", "sql")  # the others judge a response by itself
LONGEST_S = 86_400.0  # a day: the clocks below take no more than some
MOST_GB = 10_000.0
NEEDED_BY: dict[str, VerifierKind] = {"command": "command", "schema_path": "json_schema", "databases": "sql"}


class VerificationPart(Part):
    """How the opponent's responses are judged: right, wrong or undecided; see docs/verification.md."""

    kind: VerifierKind = Field(
        "none",
        description="answer: captures of data.answer_pattern; math: mathematical expressions; sql: results of queries; "
        "json_schema: a JSON Schema; command: your own program; none: responses are not judged.",
    )
    command: list[str] | None = Field(
        None,
        min_length=1,
        description="For kind command: the program with its arguments. It reads JSON Lines and writes a verdict for "
        "each.",
    )
    schema_path: PathText | None = Field(None, description="For kind json_schema: the file with the JSON Schema.")
    databases: PathText | None = Field(
        None, description="For kind sql: the folder with a SQLite file `<db_id>/<db_id>.sqlite` for each database."
    )
    timeout: float = Field(10.0, gt=0, le=LONGEST_S, description="Seconds that the verdict on one response may take.")
    memory_gb: float = Field(2.0, gt=0, le=MOST_GB, description="Memory of the verifier's process, in GB.")

    @model_validator(mode="after")
    def _fits_kind(self) -> VerificationPart:
        for name, kind in NEEDED_BY.items():
            value = getattr(self, name)
            if self.kind == kind and value is None:
                raise ValueError(f"{name} is missing, and kind is {kind}: set verification.{name}")
            if self.kind != kind and value is not None:
                raise ValueError(
                    f"{name} is set to {value!r}, and kind is {self.kind}: leave {name} out, or set "
                    f"verification.kind: {kind}"
                )
        return self

    @property
    def judges(self) -> bool:
        """Whether there is a verifier."""
        return self.kind != "none"

    @property
    def needs_reference(self) -> bool:
        """Whether it compares a response with a reference."""
        return self.kind in COMPARING


def accuracy_name(kind: str | None) -> str:
    """What the share of right held-out answers is called, by the kind of verifier; None or "none": exact match."""
    return "exact match" if kind in (None, "none") else f"accuracy ({kind})"
