"""Which version is champion, and the paired differences that it hangs on, by numbers that can be checked on paper."""

from __future__ import annotations

import numpy as np
import pytest

from iris_core.tracking.champion import challenge, first_champion
from iris_core.tracking.measures import Measure, Measures, bounded_interval

pytestmark = pytest.mark.unit

RIGHT = Measure(settings={"dtype": "float32", "pairs": "a"}, values={"heldout": [1.0, 1.0, 1.0, 0.0]})
LOGPROB = Measure(settings={"pairs": "a"}, values={"heldout": [-9.0, -21.0]}, tokens=[10.0, 20.0])
AVERAGE = Measure(
    settings={"limit": 10, "protocol": ["p", "q"]},
    values={"gsm8k": [1.0, 0.0], "mmlu": [1.0, 1.0, 1.0, 0.0]},
)


def changed(measure: Measure, **settings: object) -> Measure:
    return measure.model_copy(update={"settings": {**measure.settings, **settings}})


def worse(measure: Measure, by: float = 1.0) -> Measure:
    values = {name: [items[0] - by, *items[1:]] for name, items in measure.values.items()}
    return measure.model_copy(update={"values": values})


@pytest.mark.parametrize("criterion", ["average", "exact_match", "logprob"])
def test_better_on_the_same_items_wins_and_worse_or_equal_does_not(criterion):
    measure = {"average": AVERAGE, "exact_match": RIGHT, "logprob": LOGPROB}[criterion]
    best, other = Measures(**{criterion: measure}), Measures(**{criterion: worse(measure)})
    assert challenge(best, other, "version 1").wins
    for loser in (other, best):
        verdict = challenge(loser, best, "version 1")
        assert not verdict.wins
        assert verdict.compared
        assert verdict.note.startswith("not better than the champion: ")


def test_the_first_measure_of_the_champion_decides():
    """Benchmarks before exact match before log-prob: what comes later may be worse."""
    champion = Measures(average=worse(AVERAGE), exact_match=RIGHT, logprob=LOGPROB)
    challenger = Measures(average=AVERAGE, exact_match=worse(RIGHT), logprob=worse(LOGPROB))
    assert "benchmark average +0.375" in challenge(challenger, champion, "version 1").note
    assert challenge(challenger, champion, "version 1").wins
    no_average = champion.model_copy(update={"average": None})
    assert "held-out exact match -0.250" in challenge(challenger, no_average, "version 1").note
    only_logprob = Measures(logprob=LOGPROB)
    assert "held-out log-prob per token -0.033" in challenge(challenger, only_logprob, "version 1").note


def test_a_difference_within_noise_is_called_so():
    """3 of 4 against 2 of 4: +.25 with an interval around 0. All of 40 against none: far from it."""
    few = challenge(Measures(exact_match=RIGHT), Measures(exact_match=worse(RIGHT)), "version 1")
    assert few.wins
    assert few.note.endswith("against version 1, 4 items, within noise")
    none, every = ({"heldout": [value] * 40} for value in (0.0, 1.0))
    clear = challenge(
        Measures(exact_match=RIGHT.model_copy(update={"values": every})),
        Measures(exact_match=RIGHT.model_copy(update={"values": none})),
        "version 1",
    )
    assert clear.note == "champion: held-out exact match +1.000 [+0.873, +1.000] against version 1, 40 items"


@pytest.mark.parametrize(
    ("challenger", "champion", "reason"),
    [
        (
            Measures(exact_match=RIGHT),
            Measures(average=AVERAGE),
            "it has no benchmark average, which the champion, version 1,",
        ),
        (Measures(), Measures(logprob=LOGPROB), "it has no held-out log-prob per token"),
        (Measures(logprob=LOGPROB), Measures(), "the champion, version 1, has no measures in MLflow"),
        (Measures(logprob=LOGPROB), None, "the champion, version 1, has no measures in MLflow"),
        (
            Measures(average=changed(AVERAGE, limit=None)),
            Measures(average=AVERAGE),
            "other settings (limit: 10, here null)",
        ),
        (Measures(average=changed(AVERAGE, protocol=["p"])), Measures(average=AVERAGE), "another protocol"),
        (Measures(exact_match=changed(RIGHT, pairs="b")), Measures(exact_match=RIGHT), "from other held-out pairs"),
        (
            Measures(logprob=LOGPROB.model_copy(update={"tokens": [10.0, 19.0]})),
            Measures(logprob=LOGPROB),
            "other held-out pairs",
        ),
    ],
)
def test_what_cannot_be_compared_leaves_the_champion_and_says_why(challenger, champion, reason):
    verdict = challenge(challenger, champion, "version 1")
    assert not verdict.wins
    assert not verdict.compared
    assert verdict.note.startswith("not compared: ")
    assert reason in verdict.note
    assert verdict.note.endswith("measure both in the same way, or set the alias `champion` to this version yourself")


def test_the_first_champion_is_the_initial_model_or_one_with_a_measure():
    assert first_champion(Measures(), initial=True).wins
    assert first_champion(Measures(logprob=LOGPROB), initial=False).wins
    assert not first_champion(Measures(), initial=False).wins


@pytest.mark.parametrize("items", [16, 48, 144])
@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.02), (0.2, 0.05), (0.4, 0.3)])
def test_the_interval_of_paired_shares_covers(items, gained, lost):
    """2,000 draws of pairs of answers: at least 93 % of the intervals hold the true difference."""
    draws = np.random.default_rng(items).choice(
        [1.0, -1.0, 0.0], p=[gained, lost, 1 - gained - lost], size=(2000, items)
    )
    found = [bounded_interval([draw]) for draw in draws]
    assert np.mean([one.low <= gained - lost <= one.high for one in found]) >= 0.93


def test_the_interval_of_an_average_counts_benchmarks_alike():
    """Part a: +1 on 2 of 2 items; part b: 0 on 98. Mean of 1 and 0, whatever their sizes."""
    found = bounded_interval([np.ones(2), np.zeros(98)])
    assert found.value == 0.5
    assert found.low < 0.5 < found.high


def test_a_verifier_that_judged_is_named():
    judged = changed(RIGHT, verification={"kind": "sql"})
    note = challenge(Measures(exact_match=judged), Measures(exact_match=judged), "version 1").note
    assert note.startswith("not better than the champion: held-out accuracy (sql) +0.000")
