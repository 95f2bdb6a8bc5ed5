"""A finished experiment in miniature for tests: real specs, real manifests, made-up stages that take milliseconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from iris_core.common.digest import json_digest
from iris_core.common.intervals import Interval
from iris_core.config import Experiment, parse_experiment
from iris_core.evaluation.folder import benchmark_folder
from iris_core.objectives.gap import Gap
from iris_core.objectives.order import Movement
from iris_core.pipeline import plan
from iris_core.pipeline.metrics import (
    EvaluateMetrics,
    ExactMatch,
    GenerateMetrics,
    HeldoutMetrics,
    PrepareMetrics,
    ScheduleMetrics,
    StepMetrics,
    TrainMetrics,
)
from iris_core.pipeline.plan import LoopState, Prepared
from iris_core.pipeline.scores import Average, Score
from iris_core.pipeline.specs import RegisterSpec
from iris_core.store import Manifest, Outcome, Policy, Spec, Store, run_stage

STEPS = 6
PROMPTS = 8
ITEMS = 100  # of each benchmark
VERDICTS = {"right": 20, "wrong": 10, "undecided": 2, "judged_prompts": 8, "mixed": 6, "heldout_right": 0.25}
STARTED = 1_790_000_000.0


class SmallExperiment:
    """Runs the loop's stages as quick fakes, linked in a store as the flow does.

    Args:
        root: a temporary folder; the store and the inputs go there.
        averages: the benchmark average after each iteration; None: that evaluation gave no score.
        label: what the scores are labelled with; None: they are those of real benchmarks.
        exact: share of held-out prompts answered exactly, by the initial model and after each iteration.
        logprobs: held-out log-prob per token, likewise.
        settings: overrides of the experiment, as for a recipe.
    """

    def __init__(
        self,
        root: Path,
        averages: list[float | None],
        label: str | None = "miniature",
        exact: list[float] | None = None,
        logprobs: list[float] | None = None,
        steps: int = STEPS,
        **settings: Any,
    ):
        self.root, self.averages, self.label, self.steps = root, averages, label, steps
        self.warnings: dict[str, list[str]] = {}  # by stage
        count = len(averages) + 1
        self.exact = exact or [0.1, *(0.3 + 0.2 * t for t in range(count))]
        self.logprobs = logprobs or [-1.7 + 0.2 * t for t in range(count)]
        (root / "model").mkdir(parents=True, exist_ok=True)
        save_file({"w": np.zeros(3, np.float32)}, root / "model" / "model.safetensors")
        (root / "pairs.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
        self.experiment: Experiment = parse_experiment(
            {
                "name": "small",
                "iterations": len(averages),
                "store": str(root / "store"),
                "model": {"path": str(root / "model")},
                "data": {"path": str(root / "pairs.jsonl"), "answer_pattern": "(.+)"},
                "evaluation": {"benchmarks": ["gsm8k", "mmlu"], "limit": 10, "data_dir": "miniature"},
                **settings,
            }
        )
        self.store = Store(root / "store", self.experiment.name)
        self.store.check()
        if not (self.store.home / "recipe.yaml").exists():  # else scored again, as `iris-evaluate` may
            with self.store.one_recipe(plan.recipe_yaml(self.experiment)):
                pass
        self.prepared = Prepared.of(self.run(plan.prepare_spec(self.experiment), "prepare", self.prepare))

    def run(self, spec: Spec, place: str, work: Any) -> Manifest:
        def warn(spec: Any, out: Path) -> Outcome:
            outcome: Outcome = work(spec, out)
            said = {"warnings": self.warnings[spec.stage]} if spec.stage in self.warnings else {}
            return outcome.model_copy(update={"metrics": outcome.metrics.model_copy(update=said)})

        folder = self.store.folder(spec)
        manifest = run_stage(spec, folder, warn)
        self.store.link(place, folder)
        return manifest

    def initial(self) -> RegisterSpec:
        policy = self.prepared.initial
        spec = plan.evaluate_spec(
            self.experiment,
            self.prepared,
            policy,
            benchmark_folder(self.experiment.evaluation.data_dir),
        )
        prepared = self.store.manifest("prepare")
        assert prepared is not None
        stages = {"prepare": prepared}
        if self.experiment.evaluation.initial:
            work = self.evaluate(0.2, self.exact[0])
            stages["evaluate"] = self.run(spec, "initial/evaluate", work)
        return plan.register_spec(self.experiment, self.prepared, None, policy, stages)

    def iterations(self, count: int | None = None) -> list[RegisterSpec]:
        """Runs `count` iterations (all of them) and gives the specs of their stage `register`."""
        state, specs = self.prepared.start(self.experiment), []
        for _ in range(len(self.averages) if count is None else count):
            state, spec = self.iteration(state)
            specs.append(spec)
        return specs

    def iteration(self, state: LoopState) -> tuple[LoopState, RegisterSpec]:
        t, at = state.iteration, f"iteration-{state.iteration}"
        generate = plan.generate_spec(self.experiment, self.prepared, state)
        generated = self.run(generate, f"{at}/generate", self.generate)
        train = plan.train_spec(self.experiment, self.prepared, state, generated)
        trained = self.run(train, f"{at}/train", self.train(t))
        policy = plan.trained_policy(state.policy, trained)
        evaluate = plan.evaluate_spec(
            self.experiment,
            self.prepared,
            policy,
            benchmark_folder(self.experiment.evaluation.data_dir),
        )
        work = self.evaluate(self.averages[t], self.exact[t + 1])
        evaluated = self.run(evaluate, f"{at}/evaluate", work)
        scheduled = self.run(plan.schedule_spec(self.experiment, state, trained), f"{at}/schedule", self.schedule)
        stages = {
            "generate": generated,
            "train": trained,
            "evaluate": evaluated,
            "schedule": scheduled,
        }
        spec = plan.register_spec(self.experiment, self.prepared, t, policy, stages)
        return plan.next_state(state, generated, trained, scheduled), spec

    def policy(self, t: int) -> Policy:
        trained = self.store.manifest(f"iteration-{t}/train")
        assert trained is not None
        return plan.trained_policy(self.prepared.initial, trained)

    def prepare(self, spec: Any, out: Path) -> Outcome:
        rows = [
            {
                "prompt_id": str(i),
                "prompt": f"What is {i} + {i}?",
                "response": f"Answer: {2 * i + spec.seed}",
                "split": "heldout",
                "prompt_ids": [i],
                "response_ids": [i, 2],
            }
            for i in range(PROMPTS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), out / "pairs.parquet")
        model = {
            "path": str(self.root / "model"),
            "digest": plan.Artifact.of(self.root / "model").digest,
            "dtype": "float32",
            "packing": "packed",
            "stop_token_ids": [2],
        }
        (out / "model.json").write_text(json.dumps(model))
        metrics = PrepareMetrics(train_pairs=40, heldout_pairs=PROMPTS)
        return Outcome(outputs={"pairs": out / "pairs.parquet", "model": out / "model.json"}, metrics=metrics)

    def generate(self, spec: Any, out: Path) -> Outcome:
        (out / "responses").mkdir()
        rows = [
            {"prompt_id": str(i), "response": "?", "token_ids": [i], "finish_reason": "stop", "split": "train"}
            for i in range(PROMPTS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), out / "responses" / "0.parquet")
        metrics = GenerateMetrics(
            prompts=PROMPTS,
            tokens=80,
            mean_tokens=10.0,
            truncated=1,
            empty=0,
            tokens_per_second=123.4,
            finish_reasons={"stop": 7, "length": 1},
        )
        if not spec.verification.judges:
            return Outcome(outputs={"responses": out / "responses"}, metrics=metrics)
        (out / "verdicts").mkdir()
        (out / "verdicts" / "0.parquet").write_bytes(b"verdicts")
        outputs = {"responses": out / "responses", "verdicts": out / "verdicts"}
        return Outcome(outputs=outputs, metrics=metrics.model_copy(update=VERDICTS))

    def train(self, t: int) -> Any:
        def work(spec: Any, out: Path) -> Outcome:
            (out / "adapter").mkdir(exist_ok=True)
            save_file({"a": np.full(3, t, np.float32)}, out / "adapter" / "adapter_model.safetensors")
            (out / "adapter" / "adapter_config.json").write_text("{}")
            rows = [history_row(t, step) for step in range(1, STEPS + 1)]
            (out / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            gap = 0.8 / (t + 1)
            old, log = self.logprobs[t], self.logprobs[t + 1]
            pq.write_table(heldout_logprobs(old, log), out / "heldout.parquet")
            metrics = TrainMetrics(
                gap=Gap(value=gap, ess=6.0, pairs=PROMPTS, confirmed=True),
                movement=Movement(training_margin=around(0.3), heldout_margin=around(0.3)),
                heldout=HeldoutMetrics(
                    annotated_logprob_per_token=around(log),
                    opponent_annotated_logprob_per_token=around(old),
                    reward_margin=0.3 + 0.1 * t,
                    synthetic_kl_per_token=0.05,
                ),
                train=StepMetrics(
                    loss=-0.1,
                    ess_annotated=50.0,
                    ess_synthetic=40.0,
                    reward_margin=0.4,
                    tokens_per_second=200.0,
                    steps=self.steps,
                ),
            )
            names = {"adapter": "adapter", "history": "history.jsonl", "heldout": "heldout.parquet"}
            outputs = {name: out / file for name, file in names.items()}
            return Outcome(outputs=outputs, metrics=metrics)

        return work

    def evaluate(self, average: float | None, exact: float) -> Any:
        def work(spec: Any, out: Path) -> Outcome:
            judged = spec.answer_pattern or spec.verification.judges
            (out / "scores").mkdir(exist_ok=True)
            scores = {} if average is None else {"gsm8k": average - 0.1, "mmlu": average + 0.1}
            for name, score in scores.items():
                settings = {
                    "benchmark": name,
                    "shots": 5,
                    "limit": spec.evaluation.limit,
                    "label": self.label,
                    "backend": "hf",
                    "lm_eval": "0.4.13",
                }
                items = [float(i < round(score * ITEMS)) for i in range(ITEMS)]
                record = {
                    "value": score,
                    **settings,
                    "protocol": json_digest(settings),
                    "items": items,
                }
                (out / "scores" / f"{name}.json").write_text(json.dumps(record))
            rows = [
                {
                    "prompt_id": str(i),
                    "prompt": f"What is {i} + {i}?",
                    "annotated": f"Answer: {2 * i}",
                    "response": f"<b>{exact:.1f}</b> & {i}",
                    "correct": i < exact * PROMPTS,
                }
                for i in range(PROMPTS)
            ]
            pq.write_table(pa.Table.from_pylist(rows), out / "heldout.parquet")
            protocol = json_digest(spec.evaluation.limit)
            metrics = EvaluateMetrics(
                average=average_of(scores, spec) if scores else None,
                benchmarks={
                    name: Score(value=score, stderr=0.02, n=ITEMS, protocol=protocol) for name, score in scores.items()
                },
                label=self.label,
                heldout=ExactMatch(exact_match=around(exact), n=PROMPTS) if judged else None,
            )
            names = ["scores", "heldout.parquet"] if judged else ["scores"]
            return Outcome(
                outputs={name.removesuffix(".parquet"): out / name for name in names},
                metrics=metrics,
            )

        return work

    def schedule(self, spec: Any, out: Path) -> Outcome:
        (out / "schedule.json").write_text("{}")
        metrics = ScheduleMetrics(
            order=spec.order, next_order=max(1.0, spec.order - 0.5), converged=False, stop=False, reason="gap fell"
        )
        return Outcome(outputs={"schedule": out / "schedule.json"}, metrics=metrics)


def around(value: float) -> Interval:
    return Interval(value=value, low=value - 0.1, high=value + 0.1)


def average_of(scores: dict[str, float], spec: Any) -> Average:
    """The average as the stage `evaluate` gives it; its protocol changes with the limit."""
    value = sum(scores.values()) / len(scores)
    protocol = json_digest(spec.evaluation.limit)
    return Average(value=value, stderr=0.01, benchmarks=len(scores), protocol=protocol)


def heldout_logprobs(opponent: float, policy: float) -> pa.Table:
    """Held-out log-probs of annotated responses of 10 tokens, with these means per token and a spread of the change."""
    spread = np.linspace(-0.1, 0.1, PROMPTS)
    columns = {}
    for side, shift in (("annotated", 0), ("annotated_cut", 0), ("synthetic", -0.5)):
        columns[f"{side}_opponent"] = np.full(PROMPTS, 10 * (opponent + shift))
        columns[f"{side}_policy"] = 10 * (policy + shift + spread)
        columns[f"{side}_tokens"] = np.full(PROMPTS, 10.0)
    return pa.table(columns)


def history_row(t: int, step: int) -> dict[str, float]:
    """One training step: everything moves a little, as it would."""
    x = step / STEPS
    return {
        "step": step,
        "time": STARTED + 100 * t + step,
        "loss": -0.1 * x,
        "learning_rate": 1e-4 * (1 - x),
        "reward/annotated": 0.2 * x,
        "reward/synthetic": -0.3 * x,
        "reward/margin": 0.5 * x,
        "reward/accuracy": 0.5 + 0.4 * x,
        "ess/annotated": 64 - 4 * x,
        "ess/synthetic": 64 - 20 * math.sqrt(x),
        "weight_max/annotated": 1 + x,
        "weight_max/synthetic": 1 + 2 * x,
        "logprob/annotated": -1.5 + 0.3 * x,
        "logprob/synthetic": -0.7 - 0.3 * x,
        "grad_norm": 0.9,
        "tokens_per_second": 200.0,
        "memory_gb": 2.5,
    }
