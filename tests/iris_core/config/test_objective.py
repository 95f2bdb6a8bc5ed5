"""The list of objectives, and what follows it: defaults, the comparison, the table in the documentation."""

from pathlib import Path

import pytest

from iris_core.config.objective import OBJECTIVE_NAMES, PUBLISHED_BETA, ObjectivePart

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[3] / "docs"
HEADER = "| `objective.name` | loss of a pair | β | source |\n|---|---|---|---|\n"


def documented() -> dict[str, str]:
    """The column β of the table of objectives in the documentation, by the objective's name."""
    (text,) = [text for file in DOCS.rglob("*.md") if HEADER in (text := file.read_text(encoding="utf-8"))]
    table = text.partition(HEADER)[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name.strip("`"): beta for name, _, beta, _ in rows}


def test_the_documentation_has_every_objective_with_its_scale():
    found = documented()
    assert list(found) == OBJECTIVE_NAMES
    assert found.pop("sft") == found.pop("rft") == ""  # whose losses have no β
    assert {name: float(beta) for name, beta in found.items()} == {
        name: ObjectivePart(name=name).beta for name in found
    }


def test_defaults_depend_on_the_objective():
    assert ObjectivePart().beta == 0.1
    assert {name: ObjectivePart(name=name).beta for name in PUBLISHED_BETA} == PUBLISHED_BETA
    assert ObjectivePart(name="space", beta=0.5).beta == 0.5


def test_the_scale_that_is_left_out_depends_on_the_verifier():
    assert ObjectivePart().resolved(judged=True).beta == 1
    assert ObjectivePart(beta=0.1).resolved(judged=True).beta == 0.1
    assert ObjectivePart(verified=False).resolved(judged=True).beta == 0.1
    assert ObjectivePart().resolved(judged=False).beta == 0.1
    assert ObjectivePart().resolved(judged=True).resolved(judged=True).beta == 1
    assert [ObjectivePart(name=name).resolved(judged=True).beta for name in ("spin", "space", "spif")] == [0.1, 1, 0.1]
