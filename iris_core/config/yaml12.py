"""YAML for recipes: the core schema of YAML 1.2, without anything that two readers could understand differently.

    document = read(text)                       # document.value, document.line(("training", "epochs"))
    text = write({"name": "none", "epochs": 5}) # quotes what any reader would take for something else than text

PyYAML follows YAML 1.1: `yes` is true, `1:30` is 90, `064` is 52, and the last of two equal keys wins. Here everything
is text except `true`, `false`, `null`, decimal and 0x numbers. Text that other readers take for a number (`064`,
`0o17`, `1_000`, `1:30`) is refused by fields for numbers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

TAG = "tag:yaml.org,2002:"
TEXT = TAG + "str"
SCHEMA = {  # of plain scalars, those without quotes; longer numbers stay text
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]{0,99})|0x[0-9a-fA-F]{1,99}", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
COMMENT = re.compile(r"[ \t]+#([^\s\0]?)")  # after a value, with the character that follows the #
KINDS = {tag: re.compile(rf"(?:{pattern})\Z") for tag, (pattern, _) in SCHEMA.items()}

Location = tuple[Hashable, ...]


class YamlError(Exception):
    """The text is not YAML, or uses a feature that recipes may not use. The message names the line."""


class _Loader(yaml.SafeLoader):
    """Composes nodes with the tags of `SCHEMA`."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 reads as something else."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    """Puts text with line breaks or control characters in double quotes: other styles fold some of them."""
    return dumper.represent_scalar(TEXT, text, None if text.isprintable() else '"')


_Dumper.add_representer(str, _quoted)
for _tag, (_, _first) in SCHEMA.items():
    _Loader.add_implicit_resolver(TAG + _tag, KINDS[_tag], _first)
    _Dumper.add_implicit_resolver(TAG + _tag, KINDS[_tag], _first)


@dataclass(frozen=True)
class Document:
    """A parsed document.

    Attributes:
        value: dicts, lists, text, numbers, booleans and None.
        root: its YAML node, for line numbers; None: the text was empty.
    """

    value: Any
    root: Node | None

    def line(self, location: Location) -> int | None:
        """The line, from 1, of the value at `location`, or of the innermost part of the location that exists."""
        node, line = self.root, None
        for part in location:
            found = next((pair for pair in _members(node) if pair[0] == part), None)
            if found is None:
                break
            _, line, node = found
        return line


def read(text: str) -> Document:
    """The one document in `text`.

    Raises:
        YamlError: it is not YAML, has a key twice, a tag, a key that is no text, an anchor inside itself, or text that
            a # probably cuts off.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        return Document(None if root is None else _Builder().value(root), root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(filter(None, [error.context, error.problem]))
        raise YamlError(f"line {mark.line + 1 if mark else '?'}: not YAML ({what})") from error
    except yaml.YAMLError as error:
        raise YamlError(f"not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise YamlError("not a recipe: brackets are nested too deep") from error


def plain_scalar(text: str) -> Any:
    """The value of `text` as a plain scalar: a number, true, false, null, or text, which may contain `#` and `:`."""
    for kind, pattern in KINDS.items():
        if kind != "merge" and pattern.match(text):
            return _scalar(ScalarNode(TAG + kind, text))
    return text


def write(value: Any) -> str:
    """`value` as YAML that `read` and readers of YAML 1.1 understand in the same way."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


@dataclass
class _Builder:
    """Converts nodes to values. Each node is converted once, so aliases cost nothing."""

    built: dict[int, Any] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)

    def value(self, node: Node) -> Any:
        """The value of `node`."""
        if id(node) in self.open:
            raise YamlError(f"{_line(node)}: an anchor is inside itself: write the value out")
        if id(node) not in self.built:
            self.open.add(id(node))
            self.built[id(node)] = self._build(node)
            self.open.discard(id(node))
        return self.built[id(node)]

    def _build(self, node: Node) -> Any:
        if isinstance(node, ScalarNode):
            _check_whole(node)
            return _scalar(node)
        if isinstance(node, SequenceNode) and node.tag == TAG + "seq":
            return [self.value(item) for item in node.value]
        if isinstance(node, MappingNode) and node.tag == TAG + "map":
            return self._mapping(node)
        raise _tagged(node)

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, item in node.value:
            name = _key(key)
            if name in lines:
                raise YamlError(f"{_line(key)}: {name!r} is there twice, first in line {lines[name]}: keep one of them")
            lines[name] = key.start_mark.line + 1
            if key.tag != TAG + "merge":
                own[name] = self.value(item)
        return {**self._merged(node), **own}

    def _merged(self, node: MappingNode) -> dict[str, Any]:
        """The keys that `<<` merges in. The first of several mappings wins."""
        merged: dict[str, Any] = {}
        for source in _sources(node):
            value = self.value(source)
            if not isinstance(value, dict):
                raise YamlError(f"{_line(source)}: `<<` takes a mapping, or a list of mappings")
            merged = {**value, **merged}
        return merged


def _check_whole(node: ScalarNode) -> None:
    """Refuses text that a # probably cuts off: `#### (.+)` would be empty, and `Problem #3` would be `Problem`."""
    end = node.end_mark
    comment = COMMENT.match(end.buffer or "", end.pointer)
    if node.style is not None or comment is None:
        return
    if not node.value:
        raise YamlError(
            f"{_line(node)}: nothing is before the #, which begins a comment: put the value in quotes, or write null"
        )
    if node.tag == TEXT and comment[1]:
        raise YamlError(
            f"{_line(node)}: the # begins a comment, so the value is {node.value!r}: put the whole value in quotes, or "
            "a space after the #"
        )


def _scalar(node: ScalarNode) -> Any:
    kind, text = node.tag.removeprefix(TAG), node.value
    if node.tag == TEXT or kind == "merge":
        return text
    if kind not in KINDS or not KINDS[kind].match(text):
        raise _tagged(node)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, 16 if text.startswith("0x") else 10)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode) or node.tag not in (TEXT, TAG + "merge"):
        raise YamlError(f"{_line(node)}: a key is a word: put it in quotes, or correct it")
    return str(node.value)


def _sources(node: MappingNode) -> list[Node]:
    """The mappings that `<<` names."""
    named = [item for key, item in node.value if key.tag == TAG + "merge"]
    return [source for item in named for source in (item.value if isinstance(item, SequenceNode) else [item])]


def _members(node: Node | None) -> Iterator[tuple[Hashable, int, Node]]:
    """Key or index, line and node of every member of `node`; its own members come before merged ones."""
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield index, item.start_mark.line + 1, item
    elif isinstance(node, MappingNode):
        for key, item in node.value:
            yield key.value, key.start_mark.line + 1, item
        for source in _sources(node):
            yield from _members(source)


def _tagged(node: Node) -> YamlError:
    tag = node.tag.replace(TAG, "!!")
    return YamlError(f"{_line(node)}: the tag {tag} does not fit: write the value without a tag")


def _line(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"
