"""Log-probs of the responses under the opponent, computed once and stored, and under the trained policy."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from iris_core.common.parquet import write_parquet
from iris_core.common.progress import Progress
from iris_core.data.packing import Group
from iris_core.execution import distributed, exchange
from iris_core.modeling.scoring import score
from iris_core.modeling.sharding import reshard
from iris_core.pipeline.specs import TrainSpec
from iris_core.store.units import Units
from iris_core.training.movement import SUMS
from iris_core.training.policy import load, numerics, precision, shard, tokens_per_row

OPPONENT = "opponent_logprobs.parquet"
NUMERICS, PLAIN = b"iris.numerics", b"plain"  # in the file's metadata; plain ones are not named


def opponent_logprobs(
    spec: TrainSpec, groups: dict[str, list[Group]], units: Units, policy: PreTrainedModel | None
) -> dict[str, Tensor]:
    """Log-probs under the opponent, by split, shape [pairs, sums] as `Group.sums` counts them; stored as a unit.

    Args:
        spec: of the stage.
        groups: of the pairs, by split.
        units: of the stage.
        policy: before its first step, where that is the opponent; None: the opponent is loaded.
    """
    path = units.folder / OPPONENT
    wanted = numerics(spec)  # which the ranks agree on together
    if not distributed.decided(lambda: _is_stored(path, units, wanted)):
        table = _computed(spec, groups, policy)
        if distributed.rank() == 0:
            with units.writing(path) as place:
                write_parquet(place, table)
    exchange.spread(units.folder, path)
    stored = pq.read_table(path, memory_map=True).to_pandas()
    by_split = {split: stored[stored["split"] == split][_columns(items)] for split, items in groups.items()}
    return {split: torch.tensor(rows.to_numpy()) for split, rows in by_split.items()}


def _is_stored(path: Path, units: Units, wanted: str) -> bool:
    """Whether the log-probs are there; those of other numerics are removed: the stage went on on other ranks."""
    if not units.holds(path):
        return False
    metadata = pq.read_schema(path).metadata or {}
    if metadata.get(NUMERICS, PLAIN).decode() == wanted:
        return True
    units.remove(path)
    return False


def _computed(spec: TrainSpec, groups: dict[str, list[Group]], policy: PreTrainedModel | None) -> pa.Table:
    model = shard(spec, load(spec, spec.opponent)) if policy is None else policy
    progress = Progress("train: opponent", sum(map(len, groups.values())))
    tables = []
    for split, items in groups.items():
        sums = pair_logprobs(spec, model, items, progress.advance)
        columns = {name: sums[:, index].numpy() for index, name in enumerate(_columns(items))}
        columns["split"] = [split] * len(items)
        tables.append(pa.table(columns))
    reshard(model)
    del model
    gc.collect()  # a sharded model refers to itself
    table = pa.concat_tables(tables, promote_options="default")
    found = numerics(spec).encode()
    return table if found == PLAIN else table.replace_schema_metadata({NUMERICS: found})


def _columns(groups: list[Group]) -> list[str]:
    """Names of the sums of `groups`; samples beyond the first are numbered."""
    return [*SUMS, *(f"synthetic_{number}" for number in range(2, len(groups[0].sums) - 1))][: len(groups[0].sums)]


def pair_logprobs(
    spec: TrainSpec,
    model: PreTrainedModel,
    groups: list[Group],
    on_row: Callable[[int], None] = lambda groups: None,
) -> Tensor:
    """Log-probs with the numerics of the training step, shape [pairs, sums] as `Group.sums` counts them.

    Args:
        spec: of the stage.
        model: in evaluation mode.
        groups: of the pairs.
        on_row: called after each row, or one on each rank, with the number of groups.
    """
    return score(model, groups, tokens_per_row(spec), precision(spec), on_row, packing=spec.packing)


def measured_pairs(groups: dict[str, list[Group]]) -> dict[str, list[int]]:
    """Indices of the pairs that the trained policy is scored on, by split: all held-out ones, and as many trained ones.

    A pair with a masked synthetic response has no margin and is left out.
    """
    whole = [index for index, group in enumerate(groups["train"]) if group.responses[1]]
    count = len(groups["heldout"])
    return {"train": whole[:count], "heldout": list(range(count))}
