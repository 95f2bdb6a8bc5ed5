"""The tables, values and question templates of the generated databases (`sql_databases`)."""

from itertools import product
from typing import NamedTuple

from iris_core.demo.phrases import CITIES, NAMES, THINGS, words


class Table(NamedTuple):
    """A table with the columns id, name, one category and some numbers.

    Attributes:
        name: of the table, a noun.
        plural: of that noun.
        names: values of the column `name`, without repetition.
        category: a column of text.
        values: of the category.
        numbers: columns of numbers with their possible values, without repetition.
    """

    name: str
    plural: str
    names: tuple[str, ...]
    category: str
    values: tuple[str, ...]
    numbers: dict[str, range]


PEOPLE = tuple(f"{first} {last}" for first, last in product(NAMES, words("Adler Brandt Costa Dumas Evans Fischer")))
TITLES = tuple(
    f"{adjective} {thing.title()}"
    for adjective, thing in product(words("Silent Golden Broken Distant Bright Hidden"), THINGS)
)
PLACES = tuple(f"{city} {kind}" for city, kind in product(CITIES, words("North South Central Park")))
YEARS = range(1960, 2024)

DATABASES: dict[str, tuple[Table, Table]] = {
    "music": (
        Table("artist", "artists", PEOPLE, "genre", words("rock pop jazz folk"), {"age": range(18, 80)}),
        Table(
            "album", "albums", TITLES, "format", words("vinyl disc tape"), {"year": YEARS, "sales": range(100, 9000, 7)}
        ),
    ),
    "library": (
        Table("author", "authors", PEOPLE, "country", words("France Spain Japan Kenya"), {"birth_year": YEARS}),
        Table(
            "book",
            "books",
            TITLES,
            "language",
            words("English French German"),
            {"pages": range(90, 900), "price": range(5, 60)},
        ),
    ),
    "school": (
        Table("teacher", "teachers", PEOPLE, "subject", words("math physics art history"), {"pay": range(2000, 6000)}),
        Table("student", "students", PEOPLE, "grade", words("A B C"), {"age": range(10, 40), "score": range(30, 100)}),
    ),
    "cinema": (
        Table("director", "directors", PEOPLE, "country", words("Italy India Brazil Poland"), {"age": range(30, 80)}),
        Table(
            "film",
            "films",
            TITLES,
            "genre",
            words("drama comedy horror"),
            {"year": YEARS, "minutes": range(70, 200), "rating": range(10, 100)},
        ),
    ),
    "airline": (
        Table("airport", "airports", CITIES, "region", words("north south east west"), {"gates": range(4, 90)}),
        Table(
            "flight",
            "flights",
            tuple(f"{letters}{number}" for letters, number in product(words("AX BK CR"), range(100, 140))),
            "status",
            words("planned delayed landed"),
            {"distance": range(200, 9000, 13), "seats": range(50, 400)},
        ),
    ),
    "farm": (
        Table("barn", "barns", PLACES, "material", words("wood stone steel"), {"size": range(50, 500)}),
        Table(
            "animal",
            "animals",
            NAMES,
            "species",
            words("cow goat sheep pig"),
            {"weight": range(20, 700), "age": range(1, 40)},
        ),
    ),
    "shop": (
        Table("supplier", "suppliers", PEOPLE, "city", words("Oslo Rome Delhi Tokyo"), {"rating": range(1, 100)}),
        Table(
            "product",
            "products",
            TITLES,
            "category",
            words("toy tool food"),
            {"price": range(2, 300), "stock": range(1, 900)},
        ),
    ),
    "sports": (
        Table(
            "team", "teams", PLACES, "league", words("first second third"), {"founded": YEARS, "points": range(5, 99)}
        ),
        Table(
            "player",
            "players",
            PEOPLE,
            "position",
            words("keeper defender forward"),
            {"goals": range(1, 60), "height": range(160, 210)},
        ),
    ),
    "hospital": (
        Table(
            "doctor",
            "doctors",
            PEOPLE,
            "specialty",
            words("surgery cardiology oncology"),
            {"pay": range(3000, 9000)},
        ),
        Table(
            "patient",
            "patients",
            PEOPLE,
            "blood_type",
            words("A B AB O"),
            {"age": range(1, 99), "weight": range(30, 130)},
        ),
    ),
    "museum": (
        Table("hall", "halls", PLACES, "style", words("modern baroque gothic"), {"area": range(80, 900)}),
        Table(
            "painting",
            "paintings",
            TITLES,
            "technique",
            words("oil ink acrylic"),
            {"year": YEARS, "value": range(1000, 90000, 17)},
        ),
    ),
    "railway": (
        Table("station", "stations", CITIES, "zone", words("inner middle outer"), {"platforms": range(2, 40)}),
        Table(
            "train",
            "trains",
            TITLES,
            "kind",
            words("express local night"),
            {"speed": range(60, 300), "cars": range(2, 60)},
        ),
    ),
    "restaurant": (
        Table("chef", "chefs", PEOPLE, "cuisine", words("Thai Greek Mexican"), {"experience": range(1, 50)}),
        Table(
            "dish",
            "dishes",
            TITLES,
            "course",
            words("starter main dessert"),
            {"price": range(4, 80), "calories": range(90, 1200)},
        ),
    ),
    "zoo": (
        Table("keeper", "keepers", PEOPLE, "shift", words("day night"), {"age": range(20, 65)}),
        Table(
            "exhibit",
            "exhibits",
            TITLES,
            "climate",
            words("desert forest arctic"),
            {"area": range(40, 900), "visitors": range(100, 9000)},
        ),
    ),
    "publisher": (
        Table("editor", "editors", PEOPLE, "department", words("fiction science travel"), {"pay": range(2500, 7000)}),
        Table(
            "magazine",
            "magazines",
            TITLES,
            "frequency",
            words("weekly monthly yearly"),
            {"price": range(2, 40), "readers": range(500, 90000, 11)},
        ),
    ),
}
HELD_OUT = ("hospital", "museum", "railway", "restaurant")
WITHOUT_QUESTIONS = ("zoo", "publisher")

AGGREGATES = (("average", "AVG"), ("maximum", "MAX"), ("minimum", "MIN"), ("total", "SUM"))

_JOIN = "{t} JOIN {p} ON {t}.{p}_id = {p}.id"
TEMPLATES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("How many {ts} are there?", "Count the {ts}."), "SELECT COUNT(*) FROM {t}"),
    (
        ("How many {ts} have the {c} {v}?", "Count the {ts} whose {c} is {v}."),
        "SELECT COUNT(*) FROM {t} WHERE {c} = '{v}'",
    ),
    (
        ("What are the names of the {ts} whose {c} is {v}?", "List the names of all {ts} with the {c} {v}."),
        "SELECT name FROM {t} WHERE {c} = '{v}'",
    ),
    (("What is the {word} {n} of all {ts}?", "Find the {word} {n} of the {ts}."), "SELECT {f}({n}) FROM {t}"),
    (
        ("What is the {word} {n} of the {ts} whose {c} is {v}?", "Find the {word} {n} of {ts} with the {c} {v}."),
        "SELECT {f}({n}) FROM {t} WHERE {c} = '{v}'",
    ),
    (
        ("Which {t} has the highest {n}?", "Name the {t} with the highest {n}."),
        "SELECT name FROM {t} ORDER BY {n} DESC LIMIT 1",
    ),
    (
        ("Which {t} has the lowest {n}?", "Name the {t} with the lowest {n}."),
        "SELECT name FROM {t} ORDER BY {n} LIMIT 1",
    ),
    (
        ("Which {ts} have a {n} above {x}?", "List the names of the {ts} with a {n} above {x}."),
        "SELECT name FROM {t} WHERE {n} > {x}",
    ),
    (("How many {ts} have a {n} below {x}?",), "SELECT COUNT(*) FROM {t} WHERE {n} < {x}"),
    (
        ("What is the {n} of the {t} {name}?", "Give the {n} of {name}, a {t}."),
        "SELECT {n} FROM {t} WHERE name = '{name}'",
    ),
    (
        ("What is the {c} of the {t} {name}?", "Give the {c} of {name}, a {t}."),
        "SELECT {c} FROM {t} WHERE name = '{name}'",
    ),
    (
        ("How many {ts} are there for each {c}?", "Count the {ts} of each {c}."),
        "SELECT {c}, COUNT(*) FROM {t} GROUP BY {c}",
    ),
    (
        ("What is the {word} {n} of the {ts} for each {c}?",),
        "SELECT {c}, {f}({n}) FROM {t} GROUP BY {c}",
    ),
    (
        ("List the names of all {ts} by {n}, the highest first.",),
        "SELECT name FROM {t} ORDER BY {n} DESC",
    ),
    (("What different values of {c} do the {ts} have?",), "SELECT DISTINCT {c} FROM {t}"),
    (
        ("How many {ts} does the {p} {pname} have?", "Count the {ts} of the {p} {pname}."),
        f"SELECT COUNT(*) FROM {_JOIN} WHERE {{p}}.name = '{{pname}}'",
    ),
    (
        ("What are the names of the {ts} of the {p} {pname}?", "List the names of the {ts} of {pname}."),
        f"SELECT {{t}}.name FROM {_JOIN} WHERE {{p}}.name = '{{pname}}'",
    ),
    (
        ("Which {p} belongs to the {t} {name}?", "Name the {p} of the {t} {name}."),
        f"SELECT {{p}}.name FROM {_JOIN} WHERE {{t}}.name = '{{name}}'",
    ),
    (("Which {ps} have no {ts}?",), "SELECT name FROM {p} WHERE id NOT IN (SELECT {p}_id FROM {t})"),
    (
        ("What is the {word} {n} of the {ts} whose {p} has the {pc} {pv}?",),
        f"SELECT {{f}}({{t}}.{{n}}) FROM {_JOIN} WHERE {{p}}.{{pc}} = '{{pv}}'",
    ),
)
