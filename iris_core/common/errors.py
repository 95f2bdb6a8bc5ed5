"""The errors that a user can see. Each says what is wrong, where, and what to do, and whether a retry can help."""

from __future__ import annotations

from iris_core.common.markup import plain
from iris_core.common.redaction import redact


class IrisError(Exception):
    """Base of every error this project raises on purpose. Its message holds no secrets and no control characters.

    Attributes:
        retryable: whether running the same thing again can succeed without a change by the user.
        exit_code: what a stage's process exits with when it stops on this error.
    """

    retryable = False
    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(plain(redact(message)))


class ConfigError(IrisError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(IrisError):
    """The annotated data is missing, unreadable, or has pairs that cannot be used."""


class ModelError(IrisError):
    """The model folder is missing or incomplete, or lacks something that the loop needs, such as a chat template."""


class StoreError(IrisError):
    """The store cannot be written, or no longer has the output of a stage."""


class EvaluationError(IrisError):
    """A benchmark is unknown or its data is missing."""


class VerificationError(IrisError):
    """The verifier cannot judge: it does not start, or fails at every response."""


class TrainingError(IrisError):
    """Training cannot continue: the loss is not a number, or policy and opponent differ at step 0."""


class ServiceError(IrisError):
    """A server (MLflow, Prefect, the model hub) does not answer; trying again later may help."""

    retryable = True
    exit_code = 75


class OutageError(ServiceError):
    """A server did not answer for `tracking.patience` seconds. The stage has waited for it, so no retry follows."""

    retryable = False


class OutOfMemoryError(IrisError):
    """The device's memory is exhausted; a retry with smaller micro-batches may fit."""

    retryable = True
    exit_code = 76


class StageFailed(IrisError):
    """A stage's process ended without a manifest (killed, lost, or crashed); a retry resumes its work."""

    retryable = True
    exit_code = 70


class StageCrashed(StageFailed):
    """A stage's process ended with an exception that nobody expected: the same would happen again."""

    retryable = False
    exit_code = 1


class ExchangeFailed(StageFailed):
    """A rank could not exchange data with the others: one of them is lost, or has waited too long."""


def first_line(error: BaseException) -> str:
    """The first line of the text of `error`, for a message of one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
