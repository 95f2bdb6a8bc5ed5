"""Reads recipes: an `Experiment` in a YAML file, with settings from the command line on top.

    from iris_core.config.recipe import load_recipe
    experiment = load_recipe(Path("deployments/recipes/demo.yaml"), {"training.epochs": 1})

Recipes follow the rules of `iris_core.config.yaml12`: YAML that is ambiguous is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from iris_core.common.errors import ConfigError
from iris_core.config import yaml12
from iris_core.config.experiment import Experiment, parse_experiment
from iris_core.config.explain import shown
from iris_core.config.rules import Part
from iris_core.config.yaml12 import Document, Location, YamlError

SETTING = "--set"


def load_recipe(path: Path, overrides: Mapping[str, object] | None = None) -> Experiment:
    """The experiment in a YAML recipe, with dotted `overrides` such as {"training.epochs": 1}.

    Raises:
        ConfigError: the file is missing, is not YAML, or a value does not fit; names the line or setting, the field and
            the remedy.
    """
    document = _read(path)
    if not isinstance(document.value, dict):
        given = "empty" if document.value is None else f"a {type(document.value).__name__}"
        raise ConfigError(
            f"{path}: a recipe is a mapping with the keys {', '.join(Experiment.model_fields)}; this one is {given}"
        )
    content, settings = document.value, list(leaves(overrides or {}))
    for name, value in settings:
        content = _with(content, name.split("."), value, name)
    set_ = {tuple(name.split(".")) for name, _ in settings}

    def place(location: Location) -> str:
        if any(location[: len(name)] == name for name in set_):
            return SETTING
        line = document.line(location)
        return f"{path}, line {line}" if line else str(path)

    return parse_experiment(content, place)


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parses KEY=VALUE settings. A VALUE that starts with [, {, " or ' is YAML; any other is a plain scalar.

    Raises:
        ConfigError: no "=", a value that is not YAML, or a key twice. It does not repeat values: they may be secret.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        key = key.strip()
        if not (separator and all(key.split("."))):
            raise ConfigError(f"{SETTING} {key}{separator}: write KEY=VALUE, as in {SETTING} training.epochs=1")
        if key in found:
            raise ConfigError(f"{SETTING} {key} is there twice: keep one of them")
        found[key] = _setting(key, value.strip())
    for key, count in Counter(name for name, _ in leaves(found)).items():
        if count > 1:
            raise ConfigError(f"{SETTING} sets {key} twice: keep one of them")
    return found


def leaves(overrides: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Dotted names of single fields with their values: {"training": {"epochs": 1}} is training.epochs, and 1."""
    for name, value in overrides.items():
        if isinstance(value, Mapping) and _is_part(name.split(".")):
            yield from leaves({f"{name}.{key}": item for key, item in value.items()})
        else:
            yield name, value


def _setting(key: str, value: str) -> Any:
    quoted = value[:1] in ("[", "{", '"', "'")
    try:
        if not quoted:
            return yaml12.plain_scalar(value)
        document = yaml12.read(value)
    except YamlError as error:
        raise ConfigError(
            f"{SETTING} {key}: the value starts like YAML and is not ({error}): to use it as plain text, put it in '…' "
            "inside the shell's quotes"
        ) from None
    if document.root is None or document.root.end_mark.index < len(value):
        raise ConfigError(f"{SETTING} {key}: something follows after the value: put the whole value in quotes")
    return document.value


def _read(path: Path) -> Document:
    try:
        return yaml12.read(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no recipe {path}: recipes that come with IRIS lie in deployments/recipes/"
        ) from error
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read ({error.strerror}): give a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): save it as UTF-8") from error
    except YamlError as error:
        raise ConfigError(f"{path}, {error}") from error


def _with(content: dict[str, Any], names: list[str], value: object, full: str) -> dict[str, Any]:
    """A copy of `content` with `value` at the path `names`. Missing parts are added."""
    name, *rest = names
    if not rest:
        return {**content, name: value}
    part = content.get(name)
    if part is not None and not isinstance(part, dict):
        raise ConfigError(f"{full}: {name} is {shown(part)}, not a mapping: it has no key {'.'.join(rest)!r} to set")
    return {**content, name: _with(part or {}, rest, value, full)}


def _is_part(names: list[str]) -> bool:
    """Whether `names` leads to a part of an experiment rather than to a field."""
    part: Any = Experiment
    for name in names:
        field = part.model_fields.get(name)
        part = field.annotation if field else None
        if not (isinstance(part, type) and issubclass(part, Part)):
            return False
    return True
