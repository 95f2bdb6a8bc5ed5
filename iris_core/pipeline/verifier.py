"""What a verifier reads besides responses, by content: its verdicts depend on that, and so do the keys of stages."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from iris_core.common.digest import file_digest, folder_digest, json_digest
from iris_core.common.errors import ConfigError, DataError
from iris_core.config import VerificationPart
from iris_core.store import versions

DATABASES = ("*/*.sqlite",)
SQL_RULES = "4"  # by which results and parts are compared; another number with other verdicts
PACKAGES = {
    "math": ("math-verify", "sympy", "latex2sympy2-extended"),
    "json_schema": ("jsonschema",),
    "sql": ("sqlglot",),
}


def verifier_versions(settings: VerificationPart) -> dict[str, str]:
    """The versions of what decides verdicts."""
    engine = {"SQLite": sqlite3.sqlite_version, "SQL rules": SQL_RULES} if settings.kind == "sql" else {}
    return {**versions(*PACKAGES.get(settings.kind, ())), **engine}


def check_unchanged(settings: VerificationPart, digest: str | None) -> None:
    """Checks that the verifier's files are those that a spec was written for.

    Raises:
        ConfigError: they are missing.
        DataError: they have changed.
    """
    if verifier_digest(settings) != digest:
        raise DataError("verification: its files have changed since this spec was written: run again")


def verifier_digest(settings: VerificationPart) -> str | None:
    """SHA-256 of the files that the verifier reads: schema, databases, or those that the command names.

    None for a verifier without files. What a command reads besides that is unknown.

    Raises:
        ConfigError: the schema or the databases are missing.
    """
    if settings.schema_path is not None:
        file = Path(settings.schema_path).expanduser()
        if not file.is_file():
            raise ConfigError(f"verification.schema_path: there is no file {file}: give the file with the JSON Schema")
        return file_digest(file)
    if settings.databases is not None:
        folder = Path(settings.databases).expanduser()
        if not any(folder.glob(DATABASES[0])):
            raise ConfigError(
                f"verification.databases: {folder} holds no <db_id>/<db_id>.sqlite: give the folder with the databases"
            )
        return folder_digest(folder, DATABASES)
    return json_digest(list(command_files(settings).values())) if settings.command else None


def command_files(settings: VerificationPart) -> dict[str, str]:
    """SHA-256 of each file that the command names, by its name."""
    files = [os.path.expanduser(part) for part in settings.command or []]
    return {file: file_digest(Path(file)) for file in files if os.path.isfile(file)}


def check_unwritten(settings: VerificationPart, before: dict[str, str]) -> None:
    """Checks that the command has not written to a file that it names: every run would have another key.

    Args:
        settings: the verifier's.
        before: from `command_files`, before it judged.

    Raises:
        ConfigError: it has.
    """
    after = command_files(settings)
    if changed := [file for file in {**before, **after} if before.get(file) != after.get(file)]:
        raise ConfigError(
            f"verification.command: {changed[0]} changed while the command judged, and the content of the files that "
            "it names decides whether its verdicts are used again: let it write to a file that no word of it names, as "
            "in --log=FILE"
        )
