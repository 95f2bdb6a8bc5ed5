"""The members of a comparison: a loop for each objective and seed, and their results side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from iris_core.common.errors import ConfigError, StoreError
from iris_core.config import Experiment, ObjectiveName, ObjectivePart, parse_experiment
from iris_core.config.experiment import LONGEST_NAME
from iris_core.config.objective import COMPARED, WITH_VERIFIER, MemberName, default_beta, default_likelihood
from iris_core.pipeline.plan import execution_of, recipe_yaml
from iris_core.pipeline.specs import CompareSpec, Member
from iris_core.store import Artifact, Store, versions
from iris_core.store.places import place_of

FIGURES = "2"  # those that a comparison has; another number where they change


def compared_by_default(experiment: Experiment) -> list[MemberName]:
    """What a comparison has by default: objectives without verdicts, and those with them where there is a verifier."""
    return [*COMPARED, *(WITH_VERIFIER if experiment.verification.judges else [])]


def members(experiment: Experiment, objectives: Sequence[MemberName] | None, seeds: Sequence[int]) -> list[Experiment]:
    """The loops of a comparison, seed by seed; `objectives` None: those compared by default.

    Raises:
        ConfigError: a list is empty or names something twice, loops could end after different numbers of iterations,
            or one of them cannot be (`member`).
    """
    names = compared_by_default(experiment) if objectives is None else objectives
    _check_listed("objectives", names)
    _check_listed("seeds", seeds)
    _check_equally_long(experiment)
    return [member(experiment, name, seed) for seed in seeds for name in names]


def with_sft(experiment: Experiment) -> list[Experiment]:
    """The experiment, and its baseline: supervised fine-tuning on the same pairs, with the same seed and settings.

    Raises:
        ConfigError: the experiment is itself supervised fine-tuning, or the two could end after different numbers of
            iterations.
    """
    if experiment.objective.name == "sft":
        raise ConfigError("comparison: objective.name is sft, which is the baseline itself: run it without --with-sft")
    _check_equally_long(experiment, ", or run the loop alone, with --no-with-sft")
    tracking = experiment.tracking.model_copy(update={"registered_model": None})  # not a version of the recipe's model
    return [experiment, member(experiment.model_copy(update={"tracking": tracking}), "sft", experiment.seed)]


def member(experiment: Experiment, name: MemberName, seed: int) -> Experiment:
    """The loop of a comparison for the member `name` with `seed`, in the same store and on the same split of the data.

    Raises:
        ConfigError: the seed is out of range, the loop's name gets too long, or there is no verifier.
    """
    objective, data, schedule = experiment.objective, experiment.data, experiment.schedule
    trained: ObjectiveName = "iris" if name == "verified" else name
    verified = name == "verified"
    if (trained, verified) != (objective.name, bool(objective.verified)):
        settings = {setting: getattr(objective, setting) for setting in ObjectivePart.model_fields}
        if objective.likelihood_weight == default_likelihood(bool(objective.verified), schedule.is_one):
            del settings["likelihood_weight"]  # the member has its own
        changes = {"name": trained, "verified": verified, "beta": default_beta(trained, verified)}
        objective = ObjectivePart(**{**settings, **changes})
    if data.split_seed is None:
        data = data.model_copy(update={"split_seed": experiment.seed})
    if objective.learns_from_verdicts:  # which leaves out no right response
        data = data.model_copy(update={"synthetic": data.synthetic.model_copy(update={"equal": "keep"})})
    loop = f"{experiment.name}-{name}-seed-{seed}"
    if len(loop) > LONGEST_NAME:
        raise ConfigError(
            f"comparison: name: its loop {name}, seed {seed}, would be called {loop!r}, which is longer than "
            f"{LONGEST_NAME} characters: give the experiment a shorter one"
        )
    changed = {
        "name": loop,
        "data": data,
        "objective": objective,
        "schedule": schedule.model_dump(exclude_unset=True),  # the rest is the objective's
        "seed": seed,
    }
    return parse_experiment({**experiment.model_dump(), **changed}, "comparison")


def compare_spec(experiment: Experiment, loops: Sequence[Experiment]) -> CompareSpec:
    """The finished `loops` side by side, from their manifests in the store.

    Raises:
        StoreError: one of them has trained nothing, or other settings by now.
    """
    return CompareSpec(
        experiment=experiment.name,
        execution=execution_of(experiment),
        tracking_uri=experiment.tracking_uri,
        members=[_finished(loop) for loop in loops],
        versions={**versions("mlflow"), "figures": FIGURES},
    )


def _check_equally_long(experiment: Experiment, or_else: str = "") -> None:
    """Raises ConfigError if loops could end after different numbers of iterations; `or_else` is another remedy."""
    if experiment.schedule.stop_when_converged:
        raise ConfigError(
            "comparison: schedule.stop_when_converged is true, and loops that end after different numbers of "
            f"iterations cannot be compared: set it to false{or_else}"
        )


def _check_listed(parameter: str, values: Sequence[object]) -> None:
    """Raises ConfigError for an empty list, and for one with something twice: copies would count as samples."""
    if not values:
        raise ConfigError(f"comparison: {parameter} is an empty list: name at least one, or leave {parameter} out")
    if doubled := [str(value) for value, count in Counter(values).items() if count > 1]:
        raise ConfigError(f"comparison: {parameter} names {', '.join(doubled)} more than once: name each once")


def _finished(loop: Experiment) -> Member:
    store = Store.of(loop)

    def manifests(stage: str) -> list[Artifact]:
        places = [place_of(t, stage) for t in range(loop.iterations)]
        found = [manifest for place in places if (manifest := store.manifest(place))]
        return [manifest.as_artifact() for manifest in found]

    trained, evaluated = manifests("train"), manifests("evaluate")
    # where the loop does not evaluate it, `iris-evaluate` may have done so, for this loop alone
    initial = store.manifest(place_of(None, "evaluate")) if loop.evaluation.initial else None
    if not store.holds(recipe_yaml(loop)):
        raise StoreError(
            f"store: {store.home} has other settings than its loop, from a run that began since: give that run another "
            "`name`, then run again to resume"
        )
    if not trained:
        raise StoreError(f"{loop.name} has trained nothing yet: run its loop first")
    return Member(
        objective=f"{loop.objective.name}{' verified' if loop.objective.verified else ''}",
        beta=loop.objective.beta,
        seed=loop.seed,
        train=trained,
        evaluate=evaluated,
        initial=initial.as_artifact() if initial else None,
    )
