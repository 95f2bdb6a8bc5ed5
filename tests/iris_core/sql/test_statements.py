"""The query in a response, whether its order counts, and whether two queries have the same parts."""

from __future__ import annotations

import pytest

from iris_core.sql.statements import NotParsed, is_ordered, normal_form, query_in, same_parts, values_in

pytestmark = pytest.mark.unit

CTE = "-- all\nwith c as (select 1) select * from c"


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("SELECT 'To''m', \"Tim\", '' FROM pet", {"To'm", "Tim"}),
        ("SELECT T1.b2, -30, 3.50, 1e3, .5, 1 FROM t3 AS T1 LIMIT 2", {"30", "3.50", "1e3", ".5", "1", "2"}),
        ("SELECT a -- 5 'x'\nFROM t /* 6 */ WHERE b > 7 /* 8", {"7"}),
        ("SELECT `Ages 5-17`, [it's 8] FROM t WHERE a = '9'", {"9"}),
        ("no query 'at all", set()),
    ],
)
def test_values_in_a_query(query: str, values: set[str]) -> None:
    assert values_in(query) == values


@pytest.mark.parametrize(
    ("response", "query"),
    [
        ("SELECT 1", "SELECT 1"),
        (" SELECT 1 ;\n", "SELECT 1"),
        ("Here it is:\n```sql\nSELECT 1;\n```\nDone.", "SELECT 1"),
        ("```\nSELECT 1\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nBetter:\n```sqlite\nSELECT 2\n```", "SELECT 2"),
        ("```sql\nSELECT 1", "SELECT 1"),
        ("```\r\nSELECT 1\r\n```", "SELECT 1"),
        ("```sql SELECT 1```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nIt prints:\n```\nRex\n```", "SELECT 1"),
        ("```\nSELECT 1\n```\nIt prints:\n```text\nRex\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nWait, better:\n```\nSELECT 2\n```", "SELECT 2"),
        ("```sql\nCREATE TABLE t (a)\n```\nSo:\n```\n-- all\nwith c as (select 1) select * from c\n```", CTE),
        ("```sqlite3 SELECT 1```", "SELECT 1"),
        ("```sql\nDROP TABLE t\n```", "DROP TABLE t"),
        ("Use ```x``` of t:\n```sql\nSELECT x\n```", "SELECT x"),
        ("I do not know.", "I do not know."),
        ("", ""),
    ],
)
def test_query_in_a_response(response: str, query: str) -> None:
    assert query_in(response) == query


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t", False),
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1", True),
        ("WITH c AS (SELECT a FROM t ORDER BY a) SELECT a FROM c", False),
        ("SELECT a FROM t WHERE a = ')' order /* x */\n-- y\n by a", True),
        ("SELECT 'ORDER BY', \"ORDER BY a\", `ORDER BY (`, [ORDER BY] FROM t -- ORDER BY a\n/* ORDER BY a */", False),
        ("SELECT a AS reorder FROM t", False),
        ("SELECT date FROM w WHERE d > (DATE()) ORDER BY date IS NOT DISTINCT FROM NULL", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)", False),
        ("SELECT a FROM t WHERE a IN (SELECT b FROM u ORDER BY b)", False),
        ("SELECT a, RANK() OVER (ORDER BY a) FROM t", False),
    ],
)
def test_order(query: str, ordered: bool) -> None:
    assert is_ordered(query) is ordered


def test_order_of_many_comments_is_found_quickly() -> None:
    assert not is_ordered("SELECT 1 order " + "/**/" * 5000 + " x")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("SELECT T1.Name FROM Pet AS T1 -- x\n WHERE T1.Age > 3", "select name from pet where age > 3", True),
        ("SELECT a FROM t WHERE x = 1 AND y = 2", "SELECT a FROM t WHERE y = 2 AND x = 1", True),
        ("SELECT a FROM t WHERE x = 1 AND y = 2", "SELECT a FROM t WHERE x = 1 OR y = 2", False),
        ("SELECT a FROM t WHERE x = 'A'", "SELECT a FROM t WHERE x = 'B'", False),
        ('SELECT a FROM t WHERE x = "Joe"', "SELECT a FROM t WHERE 'Joe' = x", True),
        ("SELECT a, b FROM t", "SELECT b, a FROM t", True),
        ("SELECT COUNT(*) FROM t", "SELECT count(*) AS n FROM t", True),
        ("SELECT DISTINCT a FROM t", "SELECT a FROM t", False),
        ("SELECT a FROM t ORDER BY a, b", "SELECT a FROM t ORDER BY b, a", False),
        ("SELECT a FROM t ORDER BY a LIMIT 1", "SELECT a FROM t ORDER BY a LIMIT 2", False),
        ("SELECT t.a FROM t JOIN u ON t.i = u.j", "SELECT x.a FROM t AS x JOIN u AS y ON y.j = x.i", True),
        ("SELECT t.a FROM t JOIN u ON t.i = u.j", "SELECT t.a FROM t INNER JOIN u ON t.i = u.j", True),
        ("SELECT t.a FROM t JOIN u ON t.i = u.j", "SELECT t.a FROM u JOIN t ON t.i = u.j", True),
        ("SELECT t.a FROM t JOIN u ON t.i = u.j", "SELECT t.a FROM t, u WHERE u.j = t.i", True),
        ("SELECT t.a FROM t JOIN u ON t.i = u.j", "SELECT t.a FROM t LEFT JOIN u ON t.i = u.j", False),
        ("SELECT t.a FROM t LEFT JOIN u ON t.i = u.j", "SELECT t.a FROM u LEFT JOIN t ON t.i = u.j", False),
        ("SELECT t.a FROM t LEFT JOIN u ON t.i = u.j", "SELECT t.a FROM t LEFT JOIN u WHERE t.i = u.j", False),
        ("SELECT t.a FROM t JOIN u USING (i)", "SELECT t.a FROM t JOIN u USING (j)", False),
        ("SELECT t.a FROM t NATURAL JOIN u", "SELECT t.a FROM t JOIN u", False),
        ("SELECT a FROM t JOIN u ON t.i = u.j", "SELECT a FROM t JOIN v ON t.i = v.j", False),
        ("SELECT a FROM t, x", "SELECT a FROM t WHERE x", False),
        ("SELECT t.a FROM t JOIN u WHERE t.i = u.j", "SELECT t.a FROM t JOIN u ON t.i = u.j", True),
        (
            "SELECT t.a FROM t JOIN u JOIN v ON t.i = u.i AND u.j = v.j",
            "SELECT t.a FROM t JOIN u ON t.i = u.i JOIN v ON u.j = v.j",
            True,
        ),
        ("SELECT t.a FROM t LEFT OUTER JOIN u ON t.i = u.j", "SELECT t.a FROM t LEFT JOIN u ON t.i = u.j", True),
        ("SELECT t.a FROM t FULL JOIN u ON t.i = u.j", "SELECT t.a FROM t LEFT JOIN u ON t.i = u.j", False),
        (  # the condition of one join is not that of another
            "SELECT t.a FROM t LEFT JOIN u ON u.i = t.i AND t.z = 1 LEFT JOIN v ON v.i = t.i",
            "SELECT t.a FROM t LEFT JOIN u ON u.i = t.i LEFT JOIN v ON v.i = t.i AND t.z = 1",
            False,
        ),
        (
            "SELECT t.a FROM t LEFT JOIN u ON t.i = u.i JOIN v ON v.i = u.i",
            "SELECT t.a FROM t JOIN v ON v.i = u.i LEFT JOIN u ON t.i = u.i",
            False,
        ),
        (  # a table joined to itself, of which one has no alias
            "SELECT t.a FROM t JOIN u ON t.i = u.i JOIN t AS x ON u.j = x.i WHERE x.b = 1",
            "SELECT t.a FROM t JOIN u ON t.i = u.i AND u.j = t.i WHERE t.b = 1",
            False,
        ),
        ("SELECT COUNT(*) FROM t, t AS x", "SELECT COUNT(*) FROM t", False),
        (  # one alias of two tables
            "SELECT x.a FROM t AS x WHERE x.b IN (SELECT x.c FROM u AS x)",
            "SELECT u.a FROM t WHERE u.b IN (SELECT u.c FROM u)",
            False,
        ),
        ("SELECT a FROM t WHERE (x AND y) AND z", "SELECT a FROM t WHERE z AND x AND y", True),
        ("SELECT a FROM t WHERE x OR (y OR z)", "SELECT a FROM t WHERE z OR y OR x", True),
        ("SELECT a FROM t WHERE NOT (x OR y)", "SELECT a FROM t WHERE x OR y", False),
        ("SELECT a FROM t ORDER BY a ASC", "SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM t ORDER BY a DESC", "SELECT a FROM t ORDER BY a", False),
        ("SELECT a FROM t WHERE x = 1 OR y = 2", "SELECT a FROM t WHERE (y = 2 OR 1 = x)", True),
        ("SELECT a FROM t WHERE (x AND y) OR z", "SELECT a FROM t WHERE z OR (y AND x)", True),
        ("SELECT a FROM t WHERE (x AND y) OR z", "SELECT a FROM t WHERE x AND (y OR z)", False),
        ("SELECT a FROM t UNION SELECT b FROM u", "SELECT b FROM u UNION SELECT a FROM t", True),
        ("SELECT a FROM t UNION SELECT b FROM u LIMIT 1", "SELECT a FROM t UNION SELECT b FROM u LIMIT 2", False),
        (
            "WITH c AS (SELECT a FROM t) SELECT a FROM c UNION SELECT b FROM u",
            "SELECT a FROM c UNION SELECT b FROM u",
            False,
        ),
        ("SELECT a FROM t EXCEPT SELECT b FROM u", "SELECT b FROM u EXCEPT SELECT a FROM t", False),
        ("SELECT a FROM t GROUP BY a HAVING COUNT(*) > 1", "SELECT a FROM t GROUP BY a HAVING COUNT(*) > 2", False),
        (
            "SELECT SUM(a) OVER w FROM t WINDOW w AS (PARTITION BY b)",
            "SELECT SUM(a) OVER w FROM t WINDOW w AS (PARTITION BY c)",
            False,
        ),
        ("SELECT MAX(a) FROM t", "SELECT MIN(a) FROM t", False),
        ("SELECT a, a FROM t", "SELECT a FROM t", False),
        ("SELECT b, a FROM t", "SELECT a, b FROM t", True),
        ("SELECT COUNT(*) FROM t, t", "SELECT COUNT(*) FROM t", False),
        ("SELECT COUNT(*) FROM t GROUP BY a", "SELECT COUNT(*) FROM t GROUP BY b", False),
        ("SELECT a FROM t ORDER BY a LIMIT 1 OFFSET 1", "SELECT a FROM t ORDER BY a LIMIT 1 OFFSET 2", False),
        ("SELECT a FROM t UNION SELECT b FROM u", "SELECT a FROM t INTERSECT SELECT b FROM u", False),
        ("SELECT a FROM t UNION SELECT b FROM u", "SELECT a FROM t UNION ALL SELECT b FROM u", False),
        ("WITH c AS (SELECT a FROM t) SELECT a FROM c", "WITH c AS (SELECT a FROM u) SELECT a FROM c", False),
        (  # a subquery that depends on the row, and one that does not
            "SELECT x.a FROM t AS x WHERE x.b = (SELECT MAX(y.b) FROM t AS y WHERE y.c = x.c)",
            "SELECT x.a FROM t AS x WHERE x.b = (SELECT MAX(y.b) FROM t AS y WHERE y.c = y.c)",
            False,
        ),
        ("SELECT a FROM t", "not a query", False),
        ("SELECT DATE() FROM ON", "SELECT DATE() FROM ON", True),
    ],
)
def test_parts(first: str, second: str, same: bool) -> None:
    assert same_parts(first, second) is same


def test_normal_form() -> None:
    assert normal_form("select T1.Name from Pet as T1 /* x */") == "SELECT name FROM pet"
    assert normal_form('SELECT "First Name" FROM pet') == 'SELECT "first name" FROM pet'
    joined = "SELECT t1.a FROM t AS t1 JOIN t AS t2 ON t1.id = t2.parent"  # aliases tell the two apart
    assert normal_form(joined) == joined


@pytest.mark.parametrize("text", ["", "DROP TABLE t", "SELECT 1; SELECT 2", "hello there", "SELECT " + "(" * 3000])
def test_what_is_not_one_query(text: str) -> None:
    with pytest.raises(NotParsed):
        normal_form(text)
