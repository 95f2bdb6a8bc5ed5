"""The trainers of the training-step benchmark: ours and TRL's `DPOTrainer`, on the same pairs in the same order.

SPIN with the initial model as opponent is DPO's sigmoid loss. For both, reading and padding a batch is not timed, and
the reference's log-probabilities are computed before.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.data import GSM8K_LIKE, Pair, Sizes, pairs
from benchmarks.interleaved import Rounds, RunFailed, peak_bytes

BETA, RANK, ALPHA = 0.1, 16, 32
LONGEST_RESPONSE = 1024  # tokens
TOKENS_PER_ROW = 704  # as in the demo


@dataclass(frozen=True)
class Case:
    """What both trainers train.

    Attributes:
        model: folder of the initial model.
        dtype: of the matmuls.
        batches: number of optimiser batches.
        data: folder of GSM8K; None: made-up pairs of `sizes`.
        batch_size: pairs in one.
        sizes: lengths of made-up texts.
        tokens_per_row: our packing budget.
        method: what is trained, "lora" or "full".
        seed: of the order and the adapter.
    """

    model: Path
    dtype: str
    batches: int
    data: Path | None = None
    batch_size: int = 4
    sizes: Sizes = GSM8K_LIKE
    tokens_per_row: int = TOKENS_PER_ROW
    method: Literal["lora", "full"] = "lora"
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    """One of the peer's settings.

    Attributes:
        micro_batch: pairs in one forward; gradients are accumulated over the optimiser batch.
        autocast: fp32 weights with bf16 autocast, TRL's default, instead of weights in the case's dtype.
        liger: Liger's Triton kernels for norms, rotary embedding and SwiGLU; they need a GPU.
        default_settings: without the thread and memory settings that IRIS gives its stages; otherwise both have them.
    """

    micro_batch: int
    autocast: bool = False
    liger: bool = False
    default_settings: bool = False

    def __str__(self) -> str:
        precision = "fp32 weights, bf16 autocast" if self.autocast else "weights in the dtype of the matmuls"
        pairs = "1 pair" if self.micro_batch == 1 else f"{self.micro_batch} pairs"
        more = [", Liger kernels"] * self.liger + [", default settings"] * self.default_settings
        return f"{pairs} per forward, {precision}{''.join(more)}"


def ours(rounds: Rounds, case: Case) -> int:
    """Trains by `SelfPlayTrainer`, with the imports of the stage `train`; returns its peak memory in bytes."""
    from iris_core.modeling.patches.imports import UNUSED, block_imports

    block_imports(UNUSED)
    with tempfile.TemporaryDirectory() as work:
        trainer, groups = our_trainer(case, Path(work))
        tokens = [_response_tokens(groups, batch) for batch in trainer.train_dataset.batches]
        trainer.add_callback(_clock(rounds, tokens))
        trainer.train()
    return peak_bytes()


def peer(rounds: Rounds, case: Case, setting: Setting) -> int:
    """Trains by `DPOTrainer`; returns its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as work:
        trainer, groups = peer_trainer(case, setting, Path(work))
        trainer.add_callback(_clock(rounds, [_response_tokens(groups, b) for b in order_of(case)]))
        trainer.train()
    return peak_bytes()


def our_loss(rounds: Rounds, case: Case) -> float:
    """SPIN's loss of the first batch, with a policy that is not the opponent."""
    with tempfile.TemporaryDirectory() as work:
        trainer, _ = our_trainer(case, Path(work))
    _disturb(trainer.model)
    rows = [row.to(trainer.args.device) for row in trainer.train_dataset[0]]
    return sum(trainer.compute_loss(trainer.model, row).item() for row in rows) / case.batch_size


def peer_loss(rounds: Rounds, case: Case) -> float:
    """The same by `DPOTrainer`."""
    with tempfile.TemporaryDirectory() as work:
        trainer, _ = peer_trainer(case, Setting(case.batch_size), Path(work))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(case.batch_size)])
    _disturb(trainer.model)
    loss: float = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).item()
    return loss


def our_trainer(case: Case, work: Path) -> tuple[Any, list[Any]]:
    """Our trainer as the stage `train` builds it, and the pairs' tokens."""
    import torch
    from transformers import set_seed

    from iris_core.modeling.scoring import score
    from iris_core.store.units import Units
    from iris_core.training.policy import precision, trainable_policy
    from iris_core.training.setup import build_trainer, make_deterministic

    make_deterministic()
    set_seed(case.seed)
    spec, groups = _spec(case), tokens_of(case)
    model = trainable_policy(spec)
    opponent = score(model, groups, case.tokens_per_row, precision(spec))  # a new adapter has no effect
    model.train()
    torch.manual_seed(case.seed)
    return build_trainer(spec, model, groups, opponent, Units(work, spec.key())), groups


def peer_trainer(case: Case, setting: Setting, work: Path) -> tuple[Any, list[Any]]:
    """TRL's trainer on the same pairs in the same order, and the pairs' tokens.

    Raises:
        RunFailed: its tokens differ from ours.
    """
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PrinterCallback
    from trl import DPOTrainer

    from iris_core.modeling import loading

    disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    tokenizer, groups = loading.load_tokenizer(case.model), tokens_of(case)
    texts = _pairs(case, tokenizer)
    order = [index for batch in order_of(case) for index in batch]
    rows = [
        {
            "prompt": tokenizer.decode(groups[index].prompt),
            "chosen": texts[index].annotated,
            "rejected": texts[index].synthetic,
        }
        for index in order
    ]
    dtype = torch.float32 if setting.autocast else getattr(torch, case.dtype)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(case.model, dtype=dtype),
        args=_peer_arguments(case, setting, work),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora if case.method == "lora" else None,
    )
    trainer.remove_callback(PrinterCallback)
    for row, index in zip(trainer.train_dataset, order, strict=True):
        seen = (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        if seen != (groups[index].prompt, *groups[index].responses):
            raise RunFailed(f"pair {index} has other tokens in TRL than here")
    return trainer, groups


def _peer_arguments(case: Case, setting: Setting, work: Path) -> Any:
    """TRL's training arguments."""
    import torch
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(work),
        max_steps=case.batches,
        per_device_train_batch_size=setting.micro_batch,
        gradient_accumulation_steps=case.batch_size // setting.micro_batch,
        beta=BETA,
        loss_type=["sigmoid"],
        precompute_ref_log_probs=True,
        max_length=None,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        bf16=setting.autocast,
        use_liger_kernel=setting.liger,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        seed=case.seed,
    )


def _spec(case: Case) -> Any:
    """The spec of the stage `train` for this case."""
    from iris_core.config import LoraPart, ObjectivePart, SyntheticPart, TrainingPart
    from iris_core.pipeline.specs import TrainSpec
    from iris_core.store import Artifact, Policy

    policy = Policy(model=Artifact(path=case.model, digest="benchmark"))
    training = TrainingPart(
        epochs=1,
        batch_size=case.batch_size,
        optimizer="adamw",
        lora=LoraPart(rank=RANK, alpha=ALPHA),
        method=case.method,
        tokens_per_batch=case.tokens_per_row,
        checkpoint_every=case.batches + 1,
    )
    return TrainSpec(
        policy=policy,
        opponent=policy,
        pairs=Artifact(path=Path(), digest="benchmark"),
        synthetic=[],
        objective=ObjectivePart(name="spin", beta=BETA),
        order=1.0,
        training=training,
        packing="packed",
        learning_rate=1e-5,
        handling=SyntheticPart(),
        max_new_tokens=LONGEST_RESPONSE,
        dtype=case.dtype,
        seed=case.seed,
    )


def tokens_of(case: Case) -> list[Any]:
    """Each pair as a `Group`."""
    from iris_core.config import DataPart
    from iris_core.data.chat import Chat
    from iris_core.data.conversations import single_turn
    from iris_core.data.packing import Group
    from iris_core.modeling import loading

    tokenizer = loading.load_tokenizer(case.model)
    encode = Chat(tokenizer, DataPart(path="benchmark")).encode
    groups = []
    for pair in _pairs(case, tokenizer):
        encoded = [encode(single_turn(pair.prompt, response)) for response in (pair.annotated, pair.synthetic)]
        responses = tuple(response for _, response in encoded)
        groups.append(Group(encoded[0][0], responses, cut=LONGEST_RESPONSE))
    return groups


def _pairs(case: Case, tokenizer: Any) -> list[Pair]:
    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return pairs(case.data, case.batches * case.batch_size, tokens, case.sizes)


def order_of(case: Case) -> list[list[int]]:
    """The pairs of each batch in our trainer."""
    from iris_core.training.trainer import Batches

    count = case.batches * case.batch_size
    return Batches([None] * count, 1, case.batch_size, 0, case.seed).batches  # type: ignore[list-item]


def _response_tokens(groups: list[Any], batch: list[int]) -> int:
    return sum(len(response) for index in batch for response in groups[index].responses)


def _disturb(model: Any) -> None:
    """Gives all trained weights random values, the same in both trainers."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for _, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            noise = torch.randn(weight.shape, generator=generator) * 0.02
            weight.data.copy_(noise)


def _clock(rounds: Rounds, tokens: list[int]) -> Any:
    """A callback that trains one step per round and reports its response tokens per second."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rounds.begin()
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            rounds.end(tokens[state.global_step - 1] / (time.perf_counter() - self.started))

    return Clock()
