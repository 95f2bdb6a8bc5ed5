"""Queries as text: the one in a response, and its parts, by sqlglot's grammar of SQLite."""

from __future__ import annotations

import re
from typing import Any

from iris_core.common.errors import ConfigError

try:
    import sqlglot
    from sqlglot import exp
except ModuleNotFoundError as error:
    raise ConfigError("text-to-SQL needs sqlglot: install it with `pip install 'iris[sql]'`") from error

# a block, on one line where it names its language; then code within a line, which is none
FENCE = re.compile(
    r"```[ \t]*(?:(?:sqlite3?|sql)\b|\w*[ \t]*\r?\n)(.*?)(?:```|\Z)|```[^`\n]+```", re.DOTALL | re.IGNORECASE
)
BEGINNING = re.compile(r"\(*\s*(?:select|with|values)\b", re.IGNORECASE)  # of a query
SPACE = r"(?:\s|--[^\n]*|/\*.*?(?:\*/|\Z))"
# what may hold a parenthesis or ORDER BY that is none: text, names, comments; then parentheses and ORDER BY
ORDER = re.compile(
    rf"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|{SPACE}+|[()]|\border{SPACE}++by\b""", re.DOTALL | re.IGNORECASE
)
# comments, words and names, then text and numbers
VALUE = re.compile(
    rf"""{SPACE}+|[^\W\d]\w*|`[^`]*`|\[[^\]]*\]|'((?:[^']|'')*)'|"((?:[^"]|"")*)"|((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)""",
    re.DOTALL | re.IGNORECASE,
)
CLAUSES = (
    "with_",
    "from_",
    "where",
    "group",
    "having",
    "windows",
    "expressions",
    "distinct",
    "limit",
    "offset",
)
READING = (exp.Column, exp.Star, exp.AggFunc, exp.Window, exp.Exists)


class NotParsed(Exception):
    """sqlglot cannot parse a text as one query."""


def query_in(response: str) -> str:
    """The query in a response: the last block that begins as one, the last block between fences, or all of the text.

    A semicolon at its end is cut off.
    """
    blocks = [block for block in FENCE.findall(response) if block.strip()]
    queries = [block for block in blocks if BEGINNING.match(without_start(block))]
    return [response, *blocks, *queries][-1].strip().removesuffix(";").strip()


def without_start(query: str) -> str:
    """The query from its first word on, without what SQLite skips: a byte order mark, semicolons, comments, spaces."""
    return re.sub(rf"\A(?:;|\ufeff|{SPACE})+", "", query, flags=re.DOTALL)


def parse(query: str) -> exp.Query:
    """The syntax tree of one query.

    Raises:
        NotParsed: it is not one query.
    """
    try:
        found = [each for each in sqlglot.parse(query, read="sqlite") if each is not None]
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        raise NotParsed(str(error).splitlines()[0][:160]) from None
    if len(found) != 1 or not isinstance(found[0], exp.Query):
        raise NotParsed("it is not one query")
    return found[0]


def is_ordered(query: str) -> bool:
    """Whether the order of the rows of a query that SQLite executes counts: an ORDER BY is in no parentheses.

    sqlglot is not asked: there are queries that SQLite executes and it cannot parse.
    """
    depth = 0
    for found in ORDER.finditer(query):
        token = found.group()
        depth += (token == "(") - (token == ")")
        if depth == 0 and token[:5].lower() == "order":
            return True
    return False


def normal_form(query: str) -> str:
    """The query without what has no meaning: letter case of names, comments, spaces, names of tables' aliases.

    Raises:
        NotParsed: it cannot be parsed.
    """
    tree = parse(query)
    try:
        return _without_aliases(tree).sql(dialect="sqlite", normalize=True, comments=False)
    except RecursionError:
        raise NotParsed("it is nested too deeply") from None


def is_constant(query: str) -> bool:
    """Whether the query uses no column and counts nothing of its tables. One that cannot be parsed may do so."""
    try:
        tree = parse(query)
    except NotParsed:
        return False
    return tree.find(exp.Table) is None or tree.find(*READING) is None


def is_written(query: str) -> bool:
    """Whether each value in the result is written in the query, whatever decides how often."""
    try:
        tree = parse(query)
    except NotParsed:
        return False
    return not any(value.find(*READING) for select in _outermost(tree) for value in select.expressions)


def values_in(query: str) -> set[str]:
    """The numbers and texts that stand in a query.

    sqlglot is not asked, as in `is_ordered`. SQLite takes "Tom" for text, too, where no column has that name.
    """
    found = ("".join(match.groups("")) for match in VALUE.finditer(query))
    return {each.replace("''", "'").replace('""', '"') for each in found} - {""}


def _outermost(tree: exp.Expr) -> list[exp.Expr]:
    """The SELECTs whose rows the result has."""
    tree = tree.unnest()
    return [*_outermost(tree.left), *_outermost(tree.right)] if isinstance(tree, exp.SetOperation) else [tree]


def same_parts(first: str, second: str) -> bool:
    """Whether two queries have the same parts: columns and tables, sets of conditions and groups, the same order.

    It is stricter than Spider's exact-set match, which ignores values: see docs/sql.md.
    """
    if first == second:  # sqlglot may be unable to parse it
        return True
    try:
        return _parts(_without_aliases(parse(first))) == _parts(_without_aliases(parse(second)))
    except (NotParsed, RecursionError):
        return False


def _without_aliases(tree: exp.Expr) -> exp.Expr:
    """`tree` without what has no meaning: case of names, aliases of tables, a lone table's name, INNER, ASC."""
    tree = tree.copy()
    for column in list(tree.find_all(exp.Column)):
        if _is_text(column):
            column.replace(exp.Literal.string(column.name))
    for name in tree.find_all(exp.Identifier):
        name.replace(exp.to_identifier(name.name.lower()))
    for join in tree.find_all(exp.Join):
        if join.args.get("kind") in ("INNER", "OUTER"):  # OUTER has a side, or is FULL
            join.set("kind", None)
        if join.args.get("on") == exp.true():  # none is written
            join.set("on", None)
    for ordered in tree.find_all(exp.Ordered):
        if ordered.args.get("desc") is False:  # ASC is written
            ordered.set("desc", None)
    tables = [table for table in tree.find_all(exp.Table) if table.name]
    named = {(table.alias, table.name) for table in tables if table.alias}
    own = dict(named)
    # a table joined to itself, or two tables with one alias: the aliases tell them apart
    if any(map(_joins_itself, tree.find_all(exp.Select))) or not len(named) == len(own) == len(set(own.values())):
        return tree
    for table in tables:
        table.set("alias", None)
    for column in tree.find_all(exp.Column):
        if column.table:
            qualifier = None if len(tables) == 1 else exp.to_identifier(own.get(column.table, column.table))
            column.set("table", qualifier)
    return tree


def _joins_itself(select: exp.Select) -> bool:
    """Whether a table is there twice, of which one may have no alias."""
    sources = [select.args.get("from_"), *(select.args.get("joins") or [])]
    names = [source.this.name for source in sources if source and isinstance(source.this, exp.Table)]
    return len(set(names)) < len(names)


def _is_text(column: exp.Column) -> bool:
    """Whether a name between double quotes is compared with: SQLite takes it for text where no column has that name."""
    quoted = isinstance(column.this, exp.Identifier) and column.this.quoted and not column.table
    return quoted and isinstance(column.parent, exp.Predicate) and column.parent.this is not column


def _parts(tree: exp.Expr) -> Any:
    """The parts of a query, comparable: sorted, or a frozenset, where the order does not count."""
    if isinstance(tree, exp.SetOperation):
        sides = (_parts(tree.left.unnest()), _parts(tree.right.unnest()))
        swaps = not isinstance(tree, exp.Except)
        return (
            type(tree).__name__,
            bool(tree.args.get("distinct")),
            frozenset(sides) if swaps else sides,
            tuple(_clause(tree.args.get(name)) for name in ("with_", "limit", "offset")),
            _order(tree),
        )
    if isinstance(tree, exp.Subquery):
        return _parts(tree.unnest())
    clauses: dict[str, Any] = {name: _clause(tree.args.get(name)) for name in CLAUSES}
    clauses["expressions"] = tuple(sorted(map(_text, tree.expressions)))  # one that is there twice counts twice
    joins: list[exp.Join] = tree.args.get("joins") or []
    if not all(map(_is_inner, joins)):
        return tuple(clauses.values()), tuple(map(_joined, joins)), _order(tree)
    # tables in any order, with conditions that could as well be those of WHERE
    clauses["from_"] = tuple(sorted([*clauses["from_"], *(_text(join.this) for join in joins)]))
    clauses["where"] |= frozenset().union(*map(_on, joins))
    return tuple(clauses.values()), _order(tree)


def _joined(join: exp.Join) -> tuple[str, frozenset[str]]:
    """A join whose place counts, and its conditions."""
    copied = join.copy()
    copied.set("on", None)
    return _text(copied), _on(join)


def _on(join: exp.Join) -> frozenset[str]:
    condition = join.args.get("on")
    return frozenset(map(_text, _conditions(condition))) if condition else frozenset()


def _is_inner(join: exp.Join) -> bool:
    return join.args.get("kind") in (None, "CROSS") and not any(map(join.args.get, ("side", "using", "method")))


def _clause(value: Any) -> frozenset[str]:
    found: list[exp.Expr] = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, exp.Where | exp.Having):
            found += _conditions(each.this)
        elif isinstance(each, exp.Group):
            found += each.expressions
        elif isinstance(each, exp.From):
            found.append(each.this)
        elif isinstance(each, exp.Expr):
            found.append(each)
    return frozenset(_text(each) for each in found)


def _conditions(condition: exp.Expr) -> list[exp.Expr]:
    """The conditions that AND joins, or the one that there is."""
    return _flat(condition, exp.And)


def _flat(tree: exp.Expr, kind: type[exp.Expr]) -> list[exp.Expr]:
    """What `kind` joins, through parentheses."""
    tree = tree.unnest()
    return [part for each in tree.flatten() for part in _flat(each, kind)] if isinstance(tree, kind) else [tree]


def _order(tree: exp.Expr) -> tuple[str, ...]:
    order = tree.args.get("order")
    return tuple(_text(each) for each in order.expressions) if order else ()


def _text(tree: exp.Expr) -> str:
    if isinstance(tree, exp.Alias):
        tree = tree.this
    if isinstance(tree, exp.Paren):
        tree = tree.unnest()
    if isinstance(tree, exp.Connector):  # a OR b and b OR a
        return f"({f' {tree.key.upper()} '.join(sorted(map(_text, _flat(tree, type(tree)))))})"
    if isinstance(tree, exp.EQ):  # a = b and b = a
        return " = ".join(sorted(side.sql(dialect="sqlite") for side in (tree.left, tree.right)))
    return tree.sql(dialect="sqlite", comments=False)
