"""How verified self-play prepares samples: their weights, equal ones, and those that are left out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from iris_core.common.errors import DataError
from iris_core.config import ObjectivePart, SyntheticPart, TrainingPart
from iris_core.data.packing import Group
from iris_core.data.pairs import Pair, write_pairs
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Artifact, Policy
from iris_core.training.samples import compared_groups, load_trained, shared_with

pytestmark = pytest.mark.unit

VERIFIED = ObjectivePart(verified_weight=4.0).resolved(judged=True)
RFT = ObjectivePart(name="rft", verified_weight=4.0).resolved(judged=True)
ANNOTATED = {"a": [1, 2, 3, 4, 5], "b": [6, 2], "c": [], "d": []}  # c and d are prompts without annotation
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
R, W, U = "right", "wrong", "undecided"
SAMPLES = {  # tokens and verdict of four samples; L is 3
    "a": [([7, 2], R), ([8, 2], W), ([7, 2], R), ([9, 9, 9], U)],
    "b": [([7, 2], R), ([8, 2], R), ([7, 2], R), ([9, 2], U)],
    "c": [([5, 2], W), ([5, 2], W), ([5, 2], W), ([4, 2], R)],
    "d": [([5, 2], W), ([6, 2], W), ([5, 2], W), ([4, 2], U)],
}


def write(folder: Path, samples: dict[str, list[tuple[list[int], str]]]) -> dict[str, list[Artifact]]:
    """The responses and verdicts of `generate`, as a spec has them."""
    rows = [
        {
            "prompt_id": name,
            "sample": number,
            "token_ids": ids,
            "response": f"{ids}",
            "finish_reason": "stop" if ids[-1] == 2 else "length",
            "verdict": verdict,
        }
        for name, sampled in samples.items()
        for number, (ids, verdict) in enumerate(sampled)
    ]
    found = {}
    for output, left_out in (("synthetic", "verdict"), ("verdicts", "token_ids")):
        (folder / output).mkdir(parents=True)
        kept = [{key: value for key, value in row.items() if key != left_out} for row in rows]
        pq.write_table(pa.Table.from_pylist(kept), folder / output / "0.parquet")
        found[output] = [Artifact.of(folder / output)]
    return found


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    pairs = [Pair(name, f"prompt {name}", f"text {name}" if ids else "", [50], ids) for name, ids in ANNOTATED.items()]
    write_pairs([*pairs, Pair("h", "held out", "text", [51], [3, 2], "heldout")], tmp_path / "pairs.parquet")
    policy = Policy(model=Artifact(path=tmp_path, digest="model"))
    return TrainSpec(
        policy=policy,
        opponent=policy,
        pairs=Artifact.of(tmp_path / "pairs.parquet"),
        **write(tmp_path, SAMPLES),
        objective=VERIFIED,
        wrong_samples="first-token",
        baseline=0.5,
        order=1.0,
        training=TrainingPart(),
        learning_rate=1e-4,
        handling=SyntheticPart(),
        max_new_tokens=3,
        packing="packed",
        dtype="float32",
        seed=0,
    )


def test_groups_and_weights_on_paper(spec):
    """ρ = 4, n = 4, κ = ½. a: p̂ = 2/3, the right one twice: U = 2·(1 − 1/3), D = 1/3. b: all right, U = ½ for each.

    c: p̂ = 1/4, U = 1 − 1/8, thrice D = 1/8. d is all wrong without annotation and left out. Wrong samples end at the
    token that no right one has there.
    """
    trained = load_trained(spec)
    assert trained.groups == [
        Group([50], ([1, 2, 3, 4, 5], [7, 2], [8]), 3, (0, 0, 0)),
        Group([50], ([6, 2], [7, 2], [8, 2]), 3, (0, 0, 0)),
        Group([50], ([], [4, 2], [5]), 3, (0, 0, 0)),
    ]
    assert [group.sums for group in trained.groups] == [[3, 2, 2, 1], [2, 0, 2, 2], [0, 0, 2, 1]]
    assert trained.weights is not None
    assert trained.weights.annotated.tolist() == [1, 1, 0]
    assert trained.weights.up.flatten().tolist() == pytest.approx([4 / 3, 0, 1, 1 / 2, 7 / 8, 0])
    assert trained.weights.down.flatten().tolist() == pytest.approx([0, 1 / 3, 0, 0, 0, 3 / 8])
    assert trained.weights.share.tolist() == pytest.approx([2 / 3, 1, 1 / 4])
    assert trained.scored == trained.groups
    assert {kind: count for kind, count in trained.counts.items() if count} == {"truncated": 1}


def test_spin_leaves_out_what_it_has_no_push_for(spec, tmp_path):
    """Its annotated part is in the push on wrong samples: "b", all wrong, would only fill batches."""
    spin = spec.model_copy(update={"objective": VERIFIED.model_copy(update={"name": "spin"})})
    wrong = write(tmp_path / "wrong", {**SAMPLES, "b": [([7, 2], W)] * 4})
    found = load_trained(spin.model_copy(update=wrong)).groups
    assert [group.responses[0] for group in found] == [[1, 2, 3, 4, 5], []]
    assert len(load_trained(spec.model_copy(update=wrong)).groups) == 3
    nothing = write(tmp_path / "nothing", {name: [([7, 2], W)] * 4 for name in ANNOTATED})
    assert len(load_trained(spin.model_copy(update=nothing)).groups) == 2  # and a warning that there is no weight


@pytest.mark.parametrize("name", ["wrong_samples", "baseline"])
def test_a_spec_of_an_older_form_is_refused(spec, name):
    with pytest.raises(DataError, match=f"{name}: null: the spec is of a version of IRIS that weighed responses"):
        load_trained(spec.model_copy(update={name: None}))


def test_a_wrong_sample_counts_where_it_leaves_the_right_ones(spec, tmp_path):
    """Its tokens before that are read only, those after it are left out; equal ones share their weight.

    ρ = 4, n = 8, κ = ½, p̂ = 2/8: each wrong one weighs 4·⅛/8 = 1/16. Two part from [7, 3, 5, 2] at their third token,
    one after two tokens of [7, 3, 2], and two at their first. One has the tokens of a right one: nothing tells them
    apart.
    """
    wrong = [[7, 3, 6, 2], [7, 3, 6, 9], [7, 4, 2], [8, 3, 5, 2], [8, 2], [7, 3, 2]]
    sampled = [([7, 3, 5, 2], R), *((ids, W) for ids in wrong), ([7, 3, 2], R)]
    changed = {name: [([5, 2], W)] * 8 for name in ANNOTATED} | {"a": sampled}
    update = {**write(tmp_path / "longer", changed), "max_new_tokens": 4}
    trained = load_trained(spec.model_copy(update=update))
    responses = ([7, 3, 5, 2], [7, 3, 2], [7, 3, 6], [7, 4], [8])
    assert trained.groups[0] == Group([50], ([1, 2, 3, 4, 5], *responses), 4, (0, 0, 0, 2, 1, 0))
    assert trained.groups[0].sums == [4, 1, 4, 3, 1, 1, 1]
    assert trained.weights is not None
    assert trained.weights.up[0].tolist() == [7 / 16, 7 / 16, 0, 0, 0]
    assert trained.weights.down[0].tolist() == [0, 0, 2 / 16, 1 / 16, 2 / 16]


@given(wrong=TOKENS, right=st.lists(TOKENS, min_size=1, max_size=4))
def test_the_token_that_counts_is_the_last_that_has_an_advantage(wrong, right):
    """A prefix is worth the share of right ones among samples that have it: 0 from that token on, and not before."""
    assume(all(ids[: len(wrong)] != wrong for ids in right))

    def value(prefix: list[int]) -> float:
        having = [ids in right for ids in (*right, wrong) if ids[: len(prefix)] == prefix]
        return sum(having) / len(having)

    values = [value(wrong[:end]) for end in range(len(wrong) + 1)]
    counts = shared_with(wrong, right)
    assert all(values[: counts + 1])
    assert not any(values[counts + 1 :])


def test_the_annotated_response_is_a_right_one(spec, tmp_path):
    """Its tokens are no slip, although no right sample has them: [1, 2] goes on as far as the annotated 1, 2, 3."""
    changed = {name: [([7, 2], R), ([1, 2, 9], W), ([1, 2, 3], W), ([5, 2], U)] for name in ANNOTATED}
    trained = load_trained(spec.model_copy(update=write(tmp_path / "near", changed)))
    assert trained.groups[0] == Group([50], ([1, 2, 3, 4, 5], [7, 2], [1, 2, 9]), 3, (0, 0, 2))
    assert trained.groups[2] == Group([50], ([], [7, 2], [1]), 3, (0, 0, 0))


def test_rft_has_right_samples_alone(spec):
    trained = load_trained(spec.model_copy(update={"objective": RFT}))
    assert [group.responses[1:] for group in trained.groups] == [([7, 2], []), ([7, 2], [8, 2]), ([4, 2], [])]
    assert trained.weights is not None
    assert trained.weights.up.tolist() == [[2, 0], [2, 1], [1, 0]]
    assert not trained.weights.down.any()


def test_without_verdicts_pairs_have_their_first_sample(spec):
    """Prompts without annotation have none, and so no pair."""
    plain = spec.model_copy(update={"objective": VERIFIED.model_copy(update={"verified": False})})
    trained = load_trained(plain)
    assert trained.weights is None
    assert [group.responses for group in trained.groups] == [([1, 2, 3, 4, 5], [7, 2]), ([6, 2], [7, 2])]
    assert compared_groups(spec, 5) == trained.groups
    assert compared_groups(spec, 1) == trained.groups[:1]


@pytest.mark.parametrize("handling", ["mask", "drop"])
def test_samples_that_are_masked_or_dropped_are_undecided(spec, handling, tmp_path):
    """The wrong sample of a, cut at L, does not count: then p̂ = 1 there."""
    cut = {**SAMPLES, "a": [([7, 2], R), ([8, 8, 8], W), ([7, 2], R), ([9, 2], U)]}
    changed = spec.model_copy(update=write(tmp_path / "cut", cut))
    assert load_trained(changed).groups[0].responses[1:] == ([7, 2], [8])
    masked = load_trained(changed.model_copy(update={"handling": SyntheticPart(truncated=handling)}))
    assert masked.groups[0].responses == ([1, 2, 3, 4, 5], [7, 2], [])
    assert masked.counts["masked"] == 1


def test_a_right_sample_that_is_cut_here_is_undecided(spec, tmp_path):
    """The iteration before was allowed more tokens."""
    longer = {**SAMPLES, "a": [([7, 7, 7, 2], R), ([8, 2], W), ([7, 2], R), ([9, 2], U)]}
    trained = load_trained(spec.model_copy(update=write(tmp_path / "longer", longer)))
    assert trained.groups[0].responses[1:] == ([7, 2], [8])
    assert trained.weights is not None
    assert trained.weights.share[0] == 0.5


def test_responses_mixed_in_have_groups_of_their_own(spec, tmp_path):
    before = write(tmp_path / "before", {name: [([3, 2], R), ([4, 4, 2], W)] for name in ANNOTATED})
    mixed = {name: [*getattr(spec, name), *before[name]] for name in before}
    trained = load_trained(spec.model_copy(update=mixed))
    assert len(trained.groups) == 3 + 4
    assert trained.weights is not None
    assert torch.equal(trained.weights.up[3:], torch.ones(4, 1) @ torch.tensor([[1.5, 0.0]]))  # 4·(1 − ¼)/2


def test_wrong_samples_are_compared_with_the_right_ones_of_all_sources(spec, tmp_path):
    """[7, 9] leaves [7, 3, 2] of the other iteration at its second token. One that is cut counts, without a weight."""
    newest = write(tmp_path / "newest", {name: [([7, 3, 2], R), ([4, 2], W)] for name in ANNOTATED})
    before = write(tmp_path / "before", {name: [([7, 9, 2], W), ([8, 2], R)] for name in ANNOTATED})
    mixed = {name: [*newest[name], *before[name]] for name in before}
    trained = load_trained(spec.model_copy(update=mixed))
    assert trained.groups[4] == Group([50], ([1, 2, 3, 4, 5], [8, 2], [7, 9]), 3, (0, 0, 1))
    cut = {**SAMPLES, "c": [([4, 2], R), ([5, 3, 3], R), ([5, 3, 2], W), ([9, 2], U)]}
    trained = load_trained(spec.model_copy(update=write(tmp_path / "cut", cut)))
    assert trained.groups[2] == Group([50], ([], [4, 2], [5, 3, 2]), 3, (0, 0, 2))


def test_a_response_without_verdict_is_refused(spec, tmp_path):
    fewer = write(tmp_path / "fewer", {name: sampled[:3] for name, sampled in SAMPLES.items()})
    changed = spec.model_copy(update={"verdicts": fewer["verdicts"]})
    with pytest.raises(DataError, match="no verdict on response 3 to a: run generate again"):
        load_trained(changed)


def test_a_prompt_without_samples_is_refused(spec, tmp_path):
    fewer = write(tmp_path / "fewer", {name: SAMPLES[name] for name in "abc"})
    with pytest.raises(DataError, match="no synthetic response to prompt d"):
        load_trained(spec.model_copy(update=fewer))


def test_verdicts_that_changed_are_refused(spec):
    (spec.verdicts[0].path / "0.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="verdicts is missing or has changed since `generate` wrote it"):
        load_trained(spec)
