"""Log-probs of the responses under the opponent, computed once and stored, and under the trained policy."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from iris_core.common.parquet import write_parquet
from iris_core.common.progress import Progress
from iris_core.data.packing import Group
from iris_core.execution import distributed
from iris_core.modeling import loading
from iris_core.modeling.scoring import score
from iris_core.pipeline.specs import TrainSpec
from iris_core.store.units import Units
from iris_core.training.movement import SUMS
from iris_core.training.policy import precision, tokens_per_row, weights_dtype

OPPONENT = "opponent_logprobs.parquet"


def opponent_logprobs(spec: TrainSpec, groups: dict[str, list[Group]], units: Units) -> dict[str, Tensor]:
    """Log-probs under the opponent, by split, shape [pairs, 3] in the order of `SUMS`; stored as a unit."""
    path = units.folder / OPPONENT
    if distributed.rank() == 0 and not units.holds(path):
        model = loading.load_policy(spec.opponent, weights_dtype(spec), trust_remote_code=spec.trust_remote_code)
        progress = Progress("train: opponent", sum(map(len, groups.values())))
        tables = []
        for split, items in groups.items():
            sums = pair_logprobs(spec, model, items, progress.advance)
            columns = {name: sums[:, index].numpy() for index, name in enumerate(SUMS)}
            columns["split"] = [split] * len(items)
            tables.append(pa.table(columns))
        with units.writing(path) as place:
            write_parquet(place, pa.concat_tables(tables))
    distributed.barrier()
    stored = pq.read_table(path, memory_map=True).to_pandas()
    by_split = {split: stored[stored["split"] == split] for split in groups}
    return {split: torch.tensor(rows[SUMS].to_numpy()) for split, rows in by_split.items()}


def pair_logprobs(
    spec: TrainSpec,
    model: PreTrainedModel,
    groups: list[Group],
    on_row: Callable[[int], None] = lambda groups: None,
) -> Tensor:
    """Log-probs with the numerics of the training step, shape [pairs, 3] in the order of `SUMS`.

    Args:
        spec: of the stage.
        model: in evaluation mode.
        groups: of the pairs.
        on_row: called after each row with its number of groups.
    """
    pairs = [group.first(2) for group in groups]
    return score(model, pairs, tokens_per_row(spec), precision(spec), on_row, packing=spec.packing)


def measured_pairs(groups: dict[str, list[Group]]) -> dict[str, list[int]]:
    """Indices of the pairs that the trained policy is scored on, by split: all held-out ones, and as many trained ones.

    A pair with a masked synthetic response has no margin and is left out.
    """
    whole = [index for index, group in enumerate(groups["train"]) if group.responses[1]]
    count = len(groups["heldout"])
    return {"train": whole[:count], "heldout": list(range(count))}
