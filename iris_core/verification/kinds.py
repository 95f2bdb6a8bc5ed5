"""The module of each kind of verifier, imported where it is needed: `math` takes a second, and `sql` has a library."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from iris_core.config import VerificationPart
from iris_core.verification.verdicts import Judge


def check(settings: VerificationPart) -> None:
    """Checks what the verifier needs: files, programs, packages.

    Raises:
        ConfigError: names the setting, and what is missing or wrong.
    """
    if settings.judges:
        _module(settings).check(settings)


def open_judge(settings: VerificationPart) -> Judge:
    """The function that judges a response, for use in the verifier's process."""
    judge: Judge = _module(settings).open_judge(settings)
    return judge


def _module(settings: VerificationPart) -> ModuleType:
    return import_module(f"iris_core.verification.{settings.kind}")
