"""What mkdocs calls while it builds the site: which files are pages, and the parts of pages that come from the code.

A page has the path it has in the repository, so one link is right on GitHub, in an editor and on the site, and mkdocs
checks it. A comment such as `<!-- generated: settings -->` is replaced by what the function of that name returns.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.cli
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the pages describe this checkout, whatever is installed

from deployments.cli import app  # noqa: E402
from iris_core.common.redaction import WITHOUT_SECRET  # noqa: E402
from iris_core.config import Experiment  # noqa: E402

PUBLISHED = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**/*.md",
    "docs/*.css",
    "docs/*.js",
    "docs/images/*",
    "docker/README.md",
    "deployments/ray/*.yaml",
    "deployments/recipes/*.yaml",
    "benchmarks/**/README.md",
    "benchmarks/*.png",
    "benchmarks/study/*.svg",
)
MARK = re.compile(r"<!-- generated: (\w+) ?(\S*) -->")
LEAST = {"name": "mine", "model": {"path": "model"}, "data": {"path": "pairs.jsonl"}}  # no defaults
LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minLength": "length ≥",
    "maxLength": "length ≤",
    "minItems": "items ≥",
}
TYPES = {"string": "text", "boolean": "true or false", "array": "list", "object": "mapping"}

Schema = Mapping[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The published files under their paths in the repository, and what the theme brings along."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted({path for pattern in PUBLISHED for path in ROOT.glob(pattern)})
    places = (str(ROOT), config.site_dir, config.use_directory_urls)
    return Files([*theme, *(File(str(path.relative_to(ROOT)), *places) for path in paths)])


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its generated parts in place of their comments."""
    return MARK.sub(lambda found: GENERATED[found[1]](found[2]), text)


def recipe(name: str) -> str:
    """A recipe that comes with IRIS, as it is."""
    return f"```yaml\n{(ROOT / 'deployments' / 'recipes' / name).read_text()}```"


def command(_: str) -> str:
    """The help of each command of `iris`."""
    group = typer.main.get_command(app)
    text = typer.cli.get_docs_for_click(obj=group, ctx=typer.Context(group), name="iris")
    return text[text.index("\n## ") :]  # before that, the commands with their help cut off


def settings(_: str) -> str:
    """A section for each part of an experiment, with every setting as `--set` names it."""
    schema = Experiment.model_json_schema()
    parts = schema["$defs"]
    defaults = Experiment.model_validate(LEAST).model_dump(mode="json")
    nested = list(sections("", schema, parts, defaults))
    reached = {part["title"] for _, part, _ in nested}
    listed: list[tuple[str, Schema, Schema]] = [
        (name, part, {}) for name, part in parts.items() if part["title"] not in reached
    ]
    return "\n\n".join(section(*each) for each in [*nested, *listed])


def sections(name: str, schema: Schema, parts: Schema, defaults: Schema) -> Iterator[tuple[str, Schema, Schema]]:
    """Dotted name, JSON schema and default values of a part, then of the parts inside it."""
    yield name, schema, defaults
    for key, field in schema["properties"].items():
        if "$ref" in field:
            part = parts[part_name(field)]
            yield from sections(f"{name}.{key}".lstrip("."), part, parts, defaults.get(key, {}))


def section(name: str, part: Schema, defaults: Schema) -> str:
    """Heading, docstring and table of one part; a part of a list is called by its class."""
    listed = name == part["title"]
    prefix = "" if listed or not name else f"{name}."
    rows = [
        f"| `{prefix}{key}` | {kind(field)} | {default(key, part, defaults)} | {limits(field)} | {meaning(field)} |"
        for key, field in part["properties"].items()
        if "$ref" not in field
    ]
    title = name if listed else f"`{name}`" if name else "The experiment"
    level = "#" * (2 + name.count("."))
    head = "| Setting | Type | Default | Range | Meaning |\n|---|---|---|---|---|"
    return "\n".join([f"{level} {title}\n\n{linked(part['description'])}\n", head, *rows])


def part_name(field: Schema) -> str:
    """The class that a field refers to."""
    return str(field["$ref"]).rsplit("/", 1)[-1]


def choices(field: Schema) -> list[Schema]:
    """The schemas of which one must fit."""
    inside = field.get("anyOf") or field.get("oneOf")
    return [leaf for each in inside for leaf in choices(each)] if inside else [field]


def kind(field: Schema) -> str:
    """The type of a setting in words."""
    return " or ".join(_kind(each) for each in choices(field))


def _kind(field: Schema) -> str:
    if "$ref" in field:
        return f"[{part_name(field)}](#{part_name(field).lower()})"
    inner = field.get("items") or field.get("additionalProperties")
    what = TYPES.get(field["type"], field["type"])
    name = "choice" if "enum" in field else field.get("format", what)
    return f"{name} of {kind(inner)}" if isinstance(inner, dict) else str(name)


def default(key: str, part: Schema, defaults: Schema) -> str:
    """The value where a recipe does not set `key`."""
    if key in part.get("required", ()):
        return "required"
    value = defaults.get(key, part["properties"][key].get("default"))
    return code(value if isinstance(value, str) else json.dumps(value).replace('"', ""))


def limits(field: Schema) -> str:
    """The values that a setting may have."""
    return ", ".join(found for each in choices(field) for found in _limits(each))


def _limits(field: Schema) -> Iterator[str]:
    yield from map(code, field.get("enum", ()))
    yield from (f"{sign} {field[key]}" for key, sign in LIMITS.items() if key in field)
    if field.get("pattern", WITHOUT_SECRET) != WITHOUT_SECRET:
        yield code(field["pattern"])
    if "items" in field and (inside := limits(field["items"])):
        yield inside


def meaning(field: Schema) -> str:
    """The description of a setting, in a cell of a table."""
    return linked(field["description"]).replace("|", "\\|").replace("\n", " ")


def linked(text: str) -> str:
    """Text whose mentions of documentation are links."""
    return re.sub(r"docs/(\w+\.md)", r"[docs/\1](\1)", text)


def code(value: str) -> str:
    """A value as code in a cell of a table."""
    return f"`{value}`".replace("|", "\\|")


GENERATED = {"settings": settings, "command": command, "recipe": recipe}
