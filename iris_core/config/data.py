"""The settings of the annotated data: a part of the experiment (`iris_core.config.experiment`)."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from iris_core.config.explain import NO, YES
from iris_core.config.rules import Address, AnswerPattern, Part, is_none

DataFormat = Literal["auto", "pairs", "alpaca", "sharegpt", "messages", "prompt_completion", "preference"]
Turns = Literal["first", "last", "all"]
Handling = Literal["keep", "drop", "mask"]

TEMPLATE_ARGUMENTS = frozenset(
    (
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "strftime_now",
    )
)


class SyntheticPart(Part):
    """What training does with synthetic responses that are truncated, empty or equal to the annotated one.

    keep: train on the pair unchanged; drop: leave the pair out; mask: train on its annotated response alone. If several
    apply, drop wins over mask. Held-out pairs are always kept.
    """

    truncated: Handling = Field("keep", description="Responses that were cut at generation.max_new_tokens.")
    empty: Handling = Field("keep", description="Responses without text.")
    equal: Handling = Field("keep", description="Responses that are the annotated one.")


class Source(Part):
    """One of several sources of annotated data. Settings that are left out here are those of `data`."""

    path: Address = Field(description="File, folder, glob of files, or the name of a data set on the Hugging Face hub.")
    weight: float | None = Field(None, gt=0, description="Share of this source in the mixture, relative to the others.")
    name: str | None = Field(None, description="Subset of a data set.")
    split: str | None = Field(None, description="Split of a data set or a folder.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    format: DataFormat | None = Field(None, description="Format of the rows.")
    prompt_column: str | None = Field(None, description="Column with the prompt.")
    response_column: str | None = Field(None, description="Column with the annotated answer.")


def _listed(value: object) -> object:
    """The sources in the long form: a list of mappings."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return [{"path": each} if isinstance(each, str) else each for each in value]
    return value


KINDS = ("a path", "a list")  # the members of `Sources`, as pydantic names them in the location of an error
Sources = Annotated[
    Annotated[Address, Field(min_length=1), Tag(KINDS[0])]
    | Annotated[list[Source], Field(min_length=1), Tag(KINDS[1])],
    Discriminator(lambda value: KINDS[isinstance(value, list)]),
    BeforeValidator(_listed),
]


class DataPart(Part):
    """The annotated prompts and responses; see docs/data.md."""

    path: Sources = Field(
        description="File (JSON Lines, JSON, CSV, TSV, Parquet, Arrow), folder, glob of files, or the name of a data "
        "set on the Hugging Face hub; or a list of {path, weight, …}."
    )
    prompts_path: Sources | None = Field(
        None,
        exclude_if=is_none,
        description="Where prompts without annotation are, as in `path`; they are answered and judged, and need a "
        "verifier. Annotated answers there are ignored.",
    )
    name: str | None = Field(None, description="Subset of a data set that has several.")
    split: str = Field("train", description="Split to read of a data set or a folder.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; the resolved commit is recorded.")
    format: DataFormat = Field("auto", description="Format of the rows; auto: detected from the columns.")
    turns: Turns = Field("all", description="Which turns of the assistant in a conversation become pairs.")
    prompt_column: str | None = Field(
        None, description="Column with the prompt, text or messages; left out: that of the format."
    )
    response_column: str | None = Field(
        None,
        description="Column with the annotated answer, text or messages; left out: that of the format.",
    )
    reference_column: str | None = Field(
        None,
        exclude_if=is_none,
        description="Column with what the verifier compares responses with; left out: the annotated answer.",
    )
    system_prompt: str | None = Field(
        None, description="System message put before every prompt; left out: the template's own."
    )
    chat_template_kwargs: dict[str, str | bool | int | float | None] = Field(
        {},
        description="Variables of the chat template, such as {enable_thinking: false}; for generation, training and "
        "benchmarks.",
    )
    template_date: datetime.date = Field(
        datetime.date(2024, 7, 26),
        strict=False,  # YAML as recipes have it knows no dates
        description="The date that a chat template gets as today's, so that prompts do not change from day to day.",
    )
    max_pairs: int | None = Field(
        None, ge=2, description="Use only the first pairs of a seeded shuffle, as many as this."
    )
    heldout: int = Field(64, ge=2, description="Pairs never trained on: they measure the gap and the exact match.")
    heldout_path: Sources | None = Field(
        None,
        description="Where the held-out pairs are, as in `path`; left out: taken from `path`.",
    )
    split_seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        exclude_if=is_none,
        description="Seeds what is drawn from the data: held-out pairs, rows of sources with weights, max_pairs; left "
        "out: seed.",
    )
    max_prompt_tokens: int = Field(1024, ge=1, description="Longest prompt, in tokens with its chat template.")
    max_response_tokens: int = Field(1024, ge=1, description="Longest annotated response, in tokens.")
    on_invalid: Literal["error", "drop"] = Field(
        "error",
        description="What to do with a pair that is empty, duplicated or over those limits.",
    )
    answer_pattern: AnswerPattern | None = Field(
        None,
        description="Regular expression with one group: two answers match exactly if their last captures do.",
    )
    mix_previous: bool = Field(
        False, description="Train on the synthetic responses of this and the previous iteration."
    )

    synthetic: SyntheticPart = Field(
        default_factory=SyntheticPart, description="Which synthetic responses to train on."
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _free(cls, variables: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(TEMPLATE_ARGUMENTS & set(variables)):
            raise ValueError(f"{', '.join(taken)}: set by the pipeline itself; leave it out")
        for name, value in variables.items():
            if isinstance(value, str) and len(value) > 1 and value.lower() in YES + NO:
                meant = "true" if value.lower() in YES else "false"
                raise ValueError(
                    f"{name} is the text {value!r}, and any text is true to a template: write {meant} without quotes"
                )
        return variables

    @model_validator(mode="after")
    def _separate(self) -> DataPart:
        if self.heldout_path == self.path:
            raise ValueError(
                f"heldout_path is path itself ({self.path}), so that no pair would be left to train on: leave "
                "heldout_path out"
            )
        return self
