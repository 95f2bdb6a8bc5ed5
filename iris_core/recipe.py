"""A recipe, which is an `Experiment` as a YAML file, read with settings from the command line on top.

from iris_core.recipe import load_recipe
experiment = load_recipe(Path("deployments/recipes/demo.yaml"), {"training.epochs": 1})
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from iris_core.config import Experiment, parse_experiment
from iris_core.errors import ConfigError


def load_recipe(path: Path, overrides: dict[str, object] | None = None) -> Experiment:
    """The experiment in a YAML recipe, with dotted `overrides` such as {"training.epochs": 1}.

    Raises:
        ConfigError: the file is missing, is not YAML, or a value does not fit; names the field and the remedy.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: a recipe is a mapping with the keys {', '.join(Experiment.model_fields)}; this one is "
            f"{'empty' if content is None else f'a {type(content).__name__}'}"
        )
    for name, value in (overrides or {}).items():
        _override(content, name, value)
    return parse_experiment(content, source=str(path))


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no recipe {path}: recipes that come with IRIS lie in deployments/recipes/"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the recipe {path} cannot be read ({error.strerror}): give a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): save it as UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error


def _override(content: dict[str, Any], name: str, value: object) -> None:
    """Sets the dotted `name` in `content`, whose parts are made where they are missing."""
    *parents, last = name.split(".")
    part: Any = content
    for parent in parents:
        if part.get(parent) is None:
            part[parent] = {}
        part = part[parent]
        if not isinstance(part, dict):
            raise ConfigError(
                f"{name}: {parent} is {part!r}, not a mapping: it has no key {last!r} to set"
            )
    part[last] = value
