"""Stage `train`: one iteration of fine-tuning against the opponent.

    python -m iris_core.train --spec spec.json --out DIR

The opponent's log-probabilities are computed once, with the numerics of the training step, and stored; no second model
is ever in memory. A run that was killed goes on at its last checkpoint with the losses of an uninterrupted one.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from iris_core.training import lean

if __name__ == "__main__":
    lean.leave_out(lean.UNUSED_IN_TRAINING)

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments, set_seed

from iris_core.common.files import make_folder, remove, write_atomic
from iris_core.common.progress import Progress
from iris_core.data.packing import Group
from iris_core.execution import distributed
from iris_core.execution.stage import main
from iris_core.modeling import dropout, loading
from iris_core.modeling.lora import streamline
from iris_core.modeling.scoring import score
from iris_core.objectives.losses import OBJECTIVES, Normalizer, Parameters
from iris_core.pipeline.specs import TrainSpec
from iris_core.store import Outcome
from iris_core.store.folders import WORK
from iris_core.store.units import Units
from iris_core.training.groups import load_groups
from iris_core.training.movement import SUMS, measure, summary
from iris_core.training.optimizers import RMSprop, learning_rate_share
from iris_core.training.trainer import (
    HISTORY,
    NORMALIZER,
    Batches,
    SelfPlayTrainer,
    Settings,
    checkpoints,
    step_of,
)

OPPONENT = "opponent_logprobs.parquet"
STEP0_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
OPTIMIZERS = {"rmsprop": RMSprop, "adamw": torch.optim.AdamW}


def train(spec: TrainSpec, out: Path) -> Outcome:
    """Fine-tunes the policy and measures the gap on held-out pairs; with several GPUs, on all of them."""
    make_folder(out / WORK)
    with distributed.process_group(spec, out, distributed.requested_ranks(spec)):
        return _train(spec, out)


def _train(spec: TrainSpec, out: Path) -> Outcome:
    loading.verify(spec.policy)
    loading.verify(spec.opponent)
    units = Units(out, spec.key())
    set_seed(spec.seed)
    trained, counts = load_groups(spec, "train")
    groups = {"train": trained, "heldout": load_groups(spec, "heldout")[0]}
    before = opponent_logprobs(spec, groups, units)
    model = trainable_policy(spec)
    trainer = build_trainer(spec, model, groups["train"], before["train"], units)
    trainer.train(resume_from_checkpoint=_resume(trainer))
    if distributed.rank():
        return Outcome(outputs={})
    model.eval()
    _round(spec, model)
    places = measured(groups)
    before = {split: before[split][places[split]] for split in groups}
    after = {split: _score(spec, model, [items[place] for place in places[split]]) for split, items in groups.items()}
    name, folder = _save(spec, model, out)
    write_atomic(out / HISTORY, (out / WORK / HISTORY).read_text(encoding="utf-8"))
    metrics = measure(spec, groups["heldout"], before, after, out / "heldout.parquet")
    steps = summary(out / HISTORY)
    return Outcome(
        outputs={
            name: folder,
            "history": out / HISTORY,
            "heldout": out / "heldout.parquet",
            "opponent_logprobs": out / OPPONENT,
        },
        metrics={**metrics, "train": {**steps, "synthetic": dict(counts)}},
    )


def measured(groups: dict[str, list[Group]]) -> dict[str, list[int]]:
    """Which pairs the trained policy is scored on: all held-out ones, and as many of those trained on.

    A pair whose synthetic response is masked has no margin and is not among these.
    """
    whole = [place for place, group in enumerate(groups["train"]) if group.responses[1]]
    count = len(groups["heldout"])
    return {"train": whole[:count], "heldout": list(range(count))}


def opponent_logprobs(spec: TrainSpec, groups: dict[str, list[Group]], units: Units) -> dict[str, Tensor]:
    """Log-probs under the opponent, by split, shape [pairs, 3] in the order of `SUMS`; stored as a unit."""
    path = units.folder / OPPONENT
    if distributed.rank() == 0 and not units.holds(path):
        model = loading.load_policy(spec.opponent, _weights_dtype(spec), trust_remote_code=spec.trust_remote_code)
        progress = Progress("train: opponent", sum(map(len, groups.values())))
        tables = []
        for split, items in groups.items():
            sums = _score(spec, model, items, progress.advance)
            columns = {name: sums[:, place].numpy() for place, name in enumerate(SUMS)}
            columns["split"] = [split] * len(items)
            tables.append(pa.table(columns))
        with units.writing(path) as place:
            pq.write_table(pa.concat_tables(tables), place)
    distributed.barrier()
    stored = pq.read_table(path, memory_map=True).to_pandas()
    by_split = {split: stored[stored["split"] == split] for split in groups}
    return {split: torch.tensor(rows[SUMS].to_numpy()) for split, rows in by_split.items()}


def _score(
    spec: TrainSpec,
    model: PreTrainedModel,
    groups: list[Group],
    on_row: Callable[[int], None] = lambda groups: None,
) -> Tensor:
    """Log-probs in the order of `SUMS`, shape [pairs, 3], with the numerics of the training step."""
    pairs = [group.first(2) for group in groups]
    return score(model, pairs, _tokens_per_row(spec), precision(spec), on_row, packing=spec.packing)


def trainable_policy(spec: TrainSpec) -> PreTrainedModel:
    """The policy at the start of the iteration: all weights trainable, or the adapter only."""
    dtype = _weights_dtype(spec)
    model = loading.load_policy(spec.policy, dtype, trainable=True, trust_remote_code=spec.trust_remote_code)
    if spec.training.method == "lora" and spec.policy.adapter is None:
        from peft import LoraConfig, get_peft_model

        lora = spec.training.lora
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            use_rslora=lora.use_rslora,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
        streamline(model)
    return model


def build_trainer(
    spec: TrainSpec, model: PreTrainedModel, groups: list[Group], opponent: Tensor, units: Units
) -> SelfPlayTrainer:
    """The trainer on `groups`, with its checkpoints among `units`."""
    _reproducible()
    training = spec.training
    objective = OBJECTIVES[spec.objective.name]
    seen = [group.first(objective.responses) for group in groups]
    batches = Batches(seen, training.epochs, training.batch_size, _tokens_per_row(spec), spec.seed, spec.packing)
    same = spec.policy == spec.opponent
    settings = Settings(
        objective=objective,
        parameters=Parameters(
            order=spec.order,
            clip=spec.objective.weight_clip,
            likelihood_weight=spec.objective.likelihood_weight,
        ),
        opponent=opponent,
        beta=spec.objective.beta,
        normalizer=Normalizer(spec.objective.normalizer, spec.order),
        step0_tolerance=STEP0_TOLERANCE[spec.dtype] if same else None,
        rate=functools.partial(
            learning_rate_share,
            steps=len(batches),
            warmup_ratio=training.warmup_ratio,
            kind=training.lr_scheduler,
        ),
        precision=precision(spec),
    )
    progress = Progress("train", len(batches))
    trainer = SelfPlayTrainer(
        settings,
        units,
        progress,
        model=model,
        args=_arguments(spec, len(batches), units.folder / WORK),
        train_dataset=batches,
        optimizer_cls_and_kwargs=(OPTIMIZERS[training.optimizer], {"lr": spec.learning_rate}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(spec: TrainSpec, steps: int, work: Path) -> TrainingArguments:
    training = spec.training
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=spec.learning_rate,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        logging_steps=1,
        save_strategy="no" if distributed.rank() else "steps",
        save_steps=training.checkpoint_every,
        seed=spec.seed,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process trains on one device; each rank has its own
    return arguments


def _reproducible() -> None:
    """On a GPU, too, the same rows give the same gradients: Flash Attention's backward adds up in one order."""
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def _resume(trainer: SelfPlayTrainer) -> str | None:
    """The newest whole checkpoint; those after it go, and the history is the one that it holds."""
    work = trainer.work
    if distributed.rank() == 0:
        found = checkpoints(work)
        while found and not trainer.units.holds(found[-1]):
            found.pop()
        held = (found[-1] / HISTORY).read_text(encoding="utf-8") if found else ""
        write_atomic(work / HISTORY, held)
    distributed.barrier()  # until rank 0 has seen which are whole
    if not (whole := checkpoints(work)):
        return None
    newest = whole[-1]
    trainer.settings.normalizer.load_state_dict(json.loads((newest / NORMALIZER).read_text()))
    trainer.progress.advance(step_of(newest))
    return str(newest)


@torch.no_grad()
def _round(spec: TrainSpec, model: PreTrainedModel) -> None:
    """Rounds fully trained weights as they are saved: what is measured is what the next iteration starts from."""
    if spec.training.method == "full":
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(getattr(torch, spec.dtype)))


def _save(spec: TrainSpec, model: PreTrainedModel, out: Path) -> tuple[str, Path]:
    """Writes what was trained as safetensors: the adapter, or the whole model with its tokenizer."""
    for name in ("adapter", "model"):  # of an earlier try
        remove(out / name)
    if spec.training.method == "lora":
        folder = out / "adapter"
        for config in model.peft_config.values():
            config.base_model_name_or_path = f"sha256:{spec.policy.model.digest}"
            config.inference_mode = True
            if isinstance(config.target_modules, set):  # in the order of this process's hashes
                config.target_modules = sorted(config.target_modules)
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        return "adapter", folder
    folder = out / "model"
    dropout.restore(model.config, loading.load_config(spec.policy.model.path, spec.trust_remote_code))
    model.to(getattr(torch, spec.dtype)).save_pretrained(folder)
    loading.load_tokenizer(spec.policy.model.path, spec.trust_remote_code).save_pretrained(folder)
    return "model", folder


def _tokens_per_row(spec: TrainSpec) -> int:
    return spec.execution.tokens_per_batch or spec.training.tokens_per_batch


def _weights_dtype(spec: TrainSpec) -> str:
    """Weights that are trained are kept in fp32; bfloat16 would round small updates away."""
    return "float32" if spec.training.method == "full" else spec.dtype


def precision(spec: TrainSpec) -> functools.partial[AbstractContextManager[object]]:
    """Context manager around every forward: autocast where the weights are fp32 and the products are not to be."""
    if spec.training.method == "full" and spec.dtype == "bfloat16":
        return functools.partial(torch.autocast, loading.device().type, dtype=torch.bfloat16)
    return functools.partial(nullcontext)


if __name__ == "__main__":
    main(TrainSpec, train)
