"""Verifier `command`: a program of the user's. `worker` becomes it, so that there is no judge here."""

from __future__ import annotations

import shutil

from iris_core.common.errors import ConfigError
from iris_core.config import VerificationPart


def check(settings: VerificationPart) -> None:
    """Looks for the program.

    Raises:
        ConfigError: it is not there, or may not be run.
    """
    assert settings.command is not None
    program = settings.command[0]
    if shutil.which(program) is None:
        raise ConfigError(f"verification.command: there is no program {program!r}: install it, or give its path")
