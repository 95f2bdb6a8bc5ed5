"""Verifier `json_schema`: the response is JSON that satisfies the schema. The reference has no say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry

from iris_core.common.errors import ConfigError, first_line
from iris_core.config import VerificationPart
from iris_core.verification.verdicts import Case, Judge, Verdict


def check(settings: VerificationPart) -> None:
    """Reads the schema.

    Raises:
        ConfigError: the file is missing, or holds no JSON Schema.
    """
    open_schema(settings)


def open_judge(settings: VerificationPart) -> Judge:
    """Compares with the schema."""
    validator = open_schema(settings)

    def judge(case: Case) -> Verdict:
        try:
            content = json.loads(case.response, parse_constant=_refuse)
        except ValueError as error:
            return Verdict("wrong", f"not JSON: {error}")
        problem = next(validator.iter_errors(content), None)
        return Verdict("wrong", f"{problem.json_path}: {problem.message}") if problem else Verdict("right", "valid")

    return judge


def open_schema(settings: VerificationPart) -> Validator:
    """The schema in the file, of the draft that it names. References to other files or addresses are not followed.

    Raises:
        ConfigError: the file is missing, or holds no JSON Schema.
    """
    assert settings.schema_path is not None
    file = Path(settings.schema_path).expanduser()
    setting = "verification.schema_path"
    try:
        schema: Any = json.loads(file.read_text(encoding="utf-8"))
        kind = validator_for(schema)
        kind.check_schema(schema)
    except OSError as error:
        raise ConfigError(f"{setting}: {file} cannot be read ({first_line(error)}): give a JSON Schema") from error
    except (ValueError, TypeError, RecursionError, SchemaError) as error:  # of a schema that is no object, too
        raise ConfigError(f"{setting}: {file} is no JSON Schema ({first_line(error)}): fix it") from error
    return kind(schema, registry=Registry())


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no value of JSON")
