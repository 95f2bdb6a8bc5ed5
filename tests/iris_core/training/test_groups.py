"""How training prepares stored pairs and responses: where they are cut, and which are dropped or masked."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iris_core.common.errors import DataError
from iris_core.config import ObjectivePart, SyntheticPart, TrainingPart
from iris_core.data.packing import Group
from iris_core.data.pairs import Pair, write_pairs
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Artifact, Policy
from iris_core.training.groups import load_groups

pytestmark = pytest.mark.unit

ANNOTATED = {"a": [1, 2, 3, 4, 5], "b": [6, 2], "c": [7, 8, 2], "d": [9, 2]}
SYNTHETIC = {  # tokens, text, how it ended; L is 3
    "a": ([1, 2, 3], "one two", "length"),  # cut where the annotated one is the same so far
    "b": ([2], " ", "stop"),
    "c": ([7, 9, 9], "seven nine", "length"),
    "d": ([5, 2], "five", "stop"),
}


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    pairs = [
        Pair(name, f"prompt {name}", f"text {name}", [50], ids, split)
        for split in ("train", "heldout")
        for name, ids in ANNOTATED.items()
    ]
    write_pairs(pairs, tmp_path / "pairs.parquet")
    policy = Policy(model=Artifact(path=tmp_path, digest="model"))
    return TrainSpec(
        policy=policy,
        opponent=policy,
        pairs=Artifact.of(tmp_path / "pairs.parquet"),
        synthetic=[responses(tmp_path / "new", SYNTHETIC)],
        objective=ObjectivePart(),
        order=1.0,
        training=TrainingPart(),
        learning_rate=1e-4,
        handling=SyntheticPart(),
        max_new_tokens=3,
        packing="packed",
        dtype="float32",
        seed=0,
    )


def responses(folder: Path, sampled: dict[str, tuple[list[int], str, str]]) -> Artifact:
    rows = [
        {"prompt_id": name, "token_ids": ids, "response": text, "finish_reason": reason}
        for name, (ids, text, reason) in sampled.items()
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    return Artifact.of(folder)


def handled(spec: TrainSpec, **handling: str) -> TrainSpec:
    return spec.model_copy(update={"handling": SyntheticPart(**handling)})


def test_all_pairs_are_kept_and_counted(spec):
    groups, counts = load_groups(spec, "train")
    assert groups == [Group([50], (ids, SYNTHETIC[name][0]), cut=3) for name, ids in ANNOTATED.items()]
    assert groups[0].sums == [3, 2, 3]  # the annotated response is whole
    assert {k: n for k, n in counts.items() if n} == {"truncated": 2, "empty": 1, "equal": 1}


def test_dropped_pairs_are_left_out_of_training_only(spec):
    groups, counts = load_groups(handled(spec, truncated="drop"), "train")
    assert [group.responses[0] for group in groups] == [ANNOTATED["b"], ANNOTATED["d"]]
    assert counts["dropped"] == 2
    heldout, nothing = load_groups(handled(spec, truncated="drop"), "heldout")
    assert len(heldout) == 4
    assert not nothing.total()


def test_masked_pairs_keep_their_annotated_response(spec):
    groups, counts = load_groups(handled(spec, empty="mask", equal="mask"), "train")
    assert [group.responses for group in groups[:2]] == [(ANNOTATED["a"], []), (ANNOTATED["b"], [])]
    assert groups[2].responses[1] == SYNTHETIC["c"][0]
    assert (counts["masked"], counts["dropped"]) == (2, 0)


def test_dropping_goes_before_masking(spec):
    groups, counts = load_groups(handled(spec, truncated="drop", equal="mask"), "train")
    assert len(groups) == 2
    assert (counts["dropped"], counts["masked"]) == (2, 0)


def test_a_response_with_the_annotated_text_is_equal_whatever_its_tokens(spec, tmp_path):
    same = {name: ([4, 4, 2], f"text {name}\n", "stop") for name in ANNOTATED}
    again = spec.model_copy(update={"synthetic": [responses(tmp_path / "same", same)]})
    assert load_groups(again, "train")[1]["equal"] == 4


def test_each_mixed_response_is_cut_and_judged_on_its_own(spec, tmp_path):
    """The iteration before was allowed 5 tokens: its response is cut at 3 and counts as truncated."""
    before = {name: ([3, 3, 3, 3, 2], "long", "stop") for name in ANNOTATED}
    mixed = [*spec.synthetic, responses(tmp_path / "old", before)]
    groups, counts = load_groups(spec.model_copy(update={"synthetic": mixed}), "train")
    assert len(groups) == 8
    assert all(group.responses[1] == [3, 3, 3] for group in groups[4:])
    assert counts["truncated"] == 2 + 4
    dropped = handled(spec.model_copy(update={"synthetic": mixed}), truncated="drop")
    assert len(load_groups(dropped, "train")[0]) == 2


def test_a_masked_pair_of_t_spin_has_no_initial_response_either(spec, tmp_path):
    first = {name: ([3, 2], "first", "stop") for name in ANNOTATED}
    wanted = {"initial_synthetic": responses(tmp_path / "first", first)}
    masked = handled(spec.model_copy(update=wanted), empty="mask")
    groups, _ = load_groups(masked, "train")
    assert groups[1].responses == (ANNOTATED["b"], [], [])
    assert groups[3].responses == (ANNOTATED["d"], [5, 2], [3, 2])


def test_dropping_everything_is_refused(spec, tmp_path):
    cut = {name: ([3, 3, 3], "cut", "length") for name in ANNOTATED}
    all_cut = spec.model_copy(update={"synthetic": [responses(tmp_path / "cut", cut)]})
    with pytest.raises(DataError, match=r"data.synthetic: it drops all 4 pairs: set it to keep"):
        load_groups(handled(all_cut, truncated="drop"), "train")
