"""What is checked before anything heavy starts: the disk, MLflow, the benchmarks' data, and whose store it is."""

from __future__ import annotations

from pathlib import Path

from iris_core import tracking
from iris_core.config import Experiment
from iris_core.plan import Prepared, benchmark_folder, prepare_spec, recipe_yaml
from iris_core.store import Store, write_atomic

RECIPE = "recipe.yaml"


def check_services(experiment: Experiment) -> Store:
    """Finds out within seconds whether the store, MLflow and the benchmarks' data can be used.

    Returns:
        The experiment's store.

    Raises:
        ServiceError, ConfigError: MLflow cannot be used at `tracking.uri`.
        StoreError: the store cannot be written, or its disk is full.
        EvaluationError: `evaluation.data_dir` does not exist.
    """
    store = Store(Path(experiment.store), experiment.name)
    store.check()
    tracking.check(experiment.tracking_uri)
    benchmark_folder(experiment.evaluation.data_dir)
    return store


def claim(store: Store, experiment: Experiment, prepared: Prepared) -> None:
    """Takes the experiment's folder for this model and this data, and keeps the recipe in it.

    Where an earlier run of the name had other settings, its links go: the folder shows one recipe's iterations only.
    What those stages produced stays in the store and is found again by content.

    Raises:
        StoreError: the folder belongs to another model or other data.
    """
    asked = prepare_spec(experiment)
    identity = {
        "model": prepared.initial.model.digest,
        "data": asked.data_digest or "",
        "heldout": asked.heldout_digest or "",
    }
    store.claim(identity)
    recipe, kept = recipe_yaml(experiment), store.home / RECIPE
    if kept.exists() and kept.read_text(encoding="utf-8") != recipe:
        for link in store.home.glob("i*/*"):  # initial/… and iteration-…/…
            if link.is_symlink():
                link.unlink()
    write_atomic(kept, recipe)
