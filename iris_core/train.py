"""Stage `train`: one iteration of fine-tuning against the opponent.

    python -m iris_core.train --spec spec.json --out DIR

The opponent's log-probabilities are computed once, with the numerics of the training step, and stored. Where the
opponent is the policy before its first step, this computes them, so a second model is never in memory. A killed run
continues at its last checkpoint, with the losses of an uninterrupted run.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from iris_core.modeling.patches.imports import UNUSED, begin_imports

if __name__ == "__main__":
    begin_imports(UNUSED)

from transformers import set_seed

from iris_core.common.files import make_folder, write_atomic
from iris_core.execution import distributed
from iris_core.execution.stage import main
from iris_core.modeling import loading
from iris_core.modeling.sharding import reshard
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Outcome
from iris_core.store.folders import WORK
from iris_core.store.units import Units
from iris_core.training.checkpoints import HISTORY
from iris_core.training.groups import load_groups
from iris_core.training.movement import measure, summary
from iris_core.training.opponent import OPPONENT, measured_pairs, opponent_logprobs, pair_logprobs
from iris_core.training.policy import round_weights, save_policy, trainable_policy
from iris_core.training.samples import compared_groups, load_trained
from iris_core.training.setup import build_trainer, make_deterministic

COMPARED = "compared"  # pairs whose margin is measured where groups of training hold several samples


def train(spec: TrainSpec, out: Path) -> Outcome:
    """Fine-tunes the policy and measures the gap on held-out pairs; runs on every rank."""
    make_folder(out / WORK)
    make_deterministic()
    distributed.together(partial(_verify, spec))
    units = Units(out, spec.key(), spec.execution.patience)
    set_seed(spec.seed)
    trained = load_trained(spec)
    spec = spec.model_copy(update={"longest": max(each.computed_tokens(spec.packing) for each in trained.groups)})
    groups = {"train": trained.scored, "heldout": load_groups(spec, "heldout")[0]}
    if trained.weights is not None:
        groups[COMPARED] = compared_groups(spec, len(groups["heldout"]))
    policy = trainable_policy(spec) if spec.opponent == spec.policy else None
    opponent = opponent_logprobs(spec, groups, units, policy)
    model = trainable_policy(spec) if policy is None else policy
    trainer = build_trainer(spec, model, trained.groups, opponent["train"], units, trained.weights)
    trainer.train(resume_from_checkpoint=trainer.resume())
    model.eval()
    reshard(model)
    round_weights(spec, model)
    measured = {"train": COMPARED if COMPARED in groups else "train", "heldout": "heldout"}
    pairs = measured_pairs({split: groups[source] for split, source in measured.items()})
    before = {split: opponent[source][pairs[split]] for split, source in measured.items()}
    after = {
        split: pair_logprobs(spec, model, [groups[source][i] for i in pairs[split]])
        for split, source in measured.items()
    }
    name, folder = save_policy(spec, model, out)
    if distributed.rank():
        return Outcome(outputs={})
    write_atomic(out / HISTORY, (out / WORK / HISTORY).read_text(encoding="utf-8"))
    steps = summary(out / HISTORY, trained.counts)
    metrics = measure(spec, groups["heldout"], before, after, out / "heldout.parquet", steps)
    return Outcome(
        outputs={
            name: folder,
            "history": out / HISTORY,
            "heldout": out / "heldout.parquet",
            "opponent_logprobs": out / OPPONENT,
        },
        metrics=metrics,
    )


def _verify(spec: TrainSpec) -> None:
    """Checks the models, once on each machine."""
    if distributed.local_rank() == 0:
        loading.verify(spec.policy, spec.execution.patience)
        if spec.opponent != spec.policy:
            loading.verify(spec.opponent, spec.execution.patience)


if __name__ == "__main__":
    main(TrainSpec, train)
