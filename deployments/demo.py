"""Makes the inputs of the demos, for `iris demo`, `iris sql-demo` and the default parameters of the deployments."""

from __future__ import annotations

from pathlib import Path

from deployments.processes import private_folder
from iris_core.common.cache import cache_folder
from iris_core.demo import house_style, model, sql_databases
from iris_core.sql.prompts import Budget
from iris_core.sql.questions import Folder, write_pairs

RECIPES = Path(__file__).parent / "recipes"
WHOLE_SCHEMA = Budget(len, 10_000)  # characters; every schema of the demo is shorter


def recipe_path(name: str) -> Path:
    """The file called `name`, or the recipe of that name that comes with IRIS."""
    own = RECIPES / f"{name.removesuffix('.yaml')}.yaml"
    return own if own.is_file() and not Path(name).is_file() else Path(name)


def data_folder(seed: int) -> Path:
    """Where the annotated set of `seed` lies: `$IRIS_CACHE/demo/…`, or `~/.cache/iris/demo/…`."""
    return cache_folder() / "demo" / f"seed-{seed}"


def make_inputs(seed: int) -> dict[str, object]:
    """Makes the demo's model, annotated set, and prompts without annotation.

    Returns:
        The settings of `recipes/demo.yaml` that depend on the cache folder and the seed.
    """
    folder = private_folder(data_folder(seed))
    train, heldout = house_style.annotated_set(seed, house_style.TRAIN_PAIRS, house_style.HELDOUT_PAIRS)
    house_style.write_jsonl(folder / "pairs.jsonl", train)
    house_style.write_jsonl(folder / "heldout.jsonl", heldout)
    prompts = house_style.further_prompts(seed, house_style.PROMPTS)
    house_style.write_jsonl(folder / "prompts.jsonl", prompts, annotated=False)
    return {
        "name": "demo" if seed == 0 else f"demo-seed-{seed}",
        "seed": seed,
        "model.path": str(model.ensure()),
        "data.path": str(folder / "pairs.jsonl"),
        "data.heldout_path": str(folder / "heldout.jsonl"),
        "data.prompts_path": str(folder / "prompts.jsonl"),
    }


def make_sql_inputs(seed: int) -> dict[str, object]:
    """Makes the demo's model, and small databases with questions as annotated pairs.

    Returns:
        The settings of `recipes/sql-demo.yaml` that depend on the cache folder and the seed.
    """
    folder = private_folder(cache_folder() / "sql-demo" / f"seed-{seed}")
    sql_databases.write_folder(folder, seed)
    write_pairs(Folder(folder), folder, WHOLE_SCHEMA)
    return {
        "name": "sql-demo" if seed == 0 else f"sql-demo-seed-{seed}",
        "seed": seed,
        "model.path": str(model.ensure()),
        "data.path": str(folder / "pairs.jsonl"),
        "data.heldout_path": str(folder / "heldout.jsonl"),
        "verification.databases": str(folder / "databases"),
    }
