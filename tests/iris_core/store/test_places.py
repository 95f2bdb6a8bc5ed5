"""Places in the store: their names, and the iterations that have some."""

import pytest

from iris_core.store.places import iteration_name, iterations_in, place_of

pytestmark = pytest.mark.unit


def test_names():
    assert (iteration_name(None), iteration_name(12)) == ("initial", "iteration-12")
    assert place_of(None, "evaluate") == "initial/evaluate"
    assert place_of(3, "train") == "iteration-3/train"


def test_iterations_are_found_in_the_order_of_their_numbers(tmp_path):
    for name in ("iteration-10", "iteration-2", "iteration-x", "initial", "prepare"):
        (tmp_path / name).mkdir()
    assert iterations_in(tmp_path) == [2, 10]
    assert iterations_in(tmp_path / "missing") == []
