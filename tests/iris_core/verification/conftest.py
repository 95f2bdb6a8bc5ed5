"""Verdicts through the real processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from iris_core.config import VerificationPart
from iris_core.verification.verdicts import Case, Verdict
from iris_core.verification.verifier import open_verifier


@pytest.fixture
def judge() -> Callable[..., list[Verdict]]:
    """Verdicts on pairs of a response and a reference, by a verifier with these settings."""

    def verdicts(
        kind: Any, cases: Sequence[tuple[str, str | None]], pattern: str | None = None, **settings: Any
    ) -> list[Verdict]:
        with open_verifier(VerificationPart(kind=kind, **settings), pattern) as verifier:
            return verifier.verify([Case("What?", response, reference) for response, reference in cases])

    return verdicts
