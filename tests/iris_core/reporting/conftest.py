"""Two objectives compared, from stores of small experiments."""

from __future__ import annotations

import pytest

from iris_core.pipeline.members import compare_spec
from iris_core.reporting.trajectories import Trajectory, trajectories
from tests.iris_core.small_experiment import SmallExperiment


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    """SFT ends with 2 of 8 answers right and a log-prob of -1.2, verified IRIS with 6 of 8 and -1.4."""
    members = []
    for name, right, logprob in (("sft", 0.25, -1.2), ("iris", 0.75, -1.4)):
        small = SmallExperiment(
            tmp_path_factory.mktemp(name),
            [0.3],
            exact=[0.125, right],
            logprobs=[-1.7, logprob],
            objective={"name": name},
            verification={"kind": "math"},
        )
        small.initial()
        small.iterations()
        members.append(small.experiment)
    return trajectories(compare_spec(members[0], members).members)
