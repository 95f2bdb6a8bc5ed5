"""The training step against TRL's `DPOTrainer`: response tokens per second, and the peak memory of the process.

First a check that both runs compute the same loss, in fp32 on one batch. A step is forward, backward and update of one
optimiser batch.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.interleaved import Run, RunFailed, alone
from benchmarks.profile_of_step import profile, profile_table
from benchmarks.table import Line, Result, spread
from benchmarks.trainers import (
    BETA,
    RANK,
    TOKENS_PER_ROW,
    Case,
    Setting,
    our_loss,
    ours,
    peer,
    peer_loss,
)
from iris_core.execution.launch import CPU_SETTINGS

TOLERANCE = 1e-4  # of the two losses, relative
TRIED_STEPS = 2  # of each of the peer's settings, after one warm-up step


def measure(model: Path, data: Path | None, repeats: int, dtype: str) -> Result:
    """The lines `training step` and `peak memory`."""
    from iris_core.modeling.loading import resolve_dtype

    case = Case(model, resolve_dtype(dtype), repeats + 1, data)
    losses = [alone(loss, case=replace(case, dtype="float32")) for loss in (our_loss, peer_loss)]
    difference = abs(losses[0] / losses[1] - 1)
    if not difference <= TOLERANCE:
        raise RunFailed(f"the runs do not compute the same loss: {losses[0]} and {losses[1]}")
    settings, tried = _try_settings(case)
    fastest = {
        default_settings: max(
            (one for one in settings if one.default_settings == default_settings),
            key=lambda one: settings[one][0],
        )
        for default_settings in (False, True)
    }
    with ExitStack() as stack:
        runs = [stack.enter_context(Run(ours, case=case))]
        runs += [stack.enter_context(_peer_run(case, one)) for one in fastest.values()]
        rounds = [[run.round() for run in runs] for _ in range(case.batches)][1:]
        memory = [run.result() / 1e9 for run in runs]
    own, *theirs = ([values[run] for values in rounds] for run in range(3))
    lines = [
        Line("training step", "response tokens/s", own, theirs[0], "≥", 3.0),
        Line("training step, TRL with default settings", "response tokens/s", own, theirs[1], "≥", 3.0),
        Line("peak memory of the process", "GB", memory[:1], memory[1:2], "≤", 0.4),
        Line("peak memory of the process, TRL with default settings", "GB", memory[:1], memory[2:], "≤", 0.4),
    ]
    same = replace(fastest[False], micro_batch=case.batch_size)
    if same in settings:
        title = "peak memory, equal pairs per forward"
        lines.append(Line(title, "GB", memory[:1], [settings[same][1]], "≤", 0.4))
    return Result("step", lines, _text(case, losses, difference, tried, alone(profile, case=case)))


def _try_settings(case: Case) -> tuple[dict[Setting, tuple[float, float]], str]:
    """Speed and peak memory in GB of each of the peer's settings that runs, and all of them as a table."""
    autocast = [False, True] if case.dtype == "bfloat16" else [False]
    settings = [
        Setting(micro, cast, default_settings=default_settings)
        for default_settings in (False, True)
        for cast in autocast
        for micro in (case.batch_size, 1)
    ]
    rows, found = ["| setting | response tokens/s | peak memory |", "|---|---|---|"], {}
    short = replace(case, batches=TRIED_STEPS + 1)
    for setting in settings:
        try:
            with _peer_run(short, setting) as run:
                values = [run.round() for _ in range(short.batches)][1:]
                memory = run.result() / 1e9
        except RunFailed as failure:
            rows.append(f"| {setting} | failed: {str(failure).strip().splitlines()[-1]} | |")
            continue
        found[setting] = median(values), memory
        rows.append(f"| {setting} | {spread(values)} | {memory:.1f} GB |")
    if {setting.default_settings for setting in found} != {False, True}:
        raise RunFailed("too few of the peer's settings ran:\n" + "\n".join(rows))
    return found, "\n".join(rows)


def _peer_run(case: Case, setting: Setting) -> Run:
    kept = dict(os.environ)
    if setting.default_settings:
        for name in CPU_SETTINGS:
            os.environ.pop(name, None)
    try:
        return Run(peer, case=case, setting=setting)
    finally:
        os.environ.update(kept)


def _text(case: Case, losses: list[float], difference: float, tried: str, operators: list[dict[str, Any]]) -> str:
    data = "GSM8K" if case.data else "made-up pairs with GSM8K's lengths"
    return f"""{case.model.name}, LoRA r = {RANK} on all linear layers, {case.dtype}, {case.batches - 1} steps of \
{case.batch_size} pairs ({data}) after a warm-up step, AdamW. A step is forward, backward and update; our rows have up \
to {TOKENS_PER_ROW} tokens.

The same loss: {losses[0]:.6f} ours and {losses[1]:.6f} TRL's (β = {BETA}, fp32, one batch, both adapters set to the \
same random values); relative difference {difference:.1e}, at most {TOLERANCE:g} is allowed.

Two peers are interleaved with ours: TRL with the thread and memory settings that IRIS gives its stages, and TRL with \
default settings, as in a script of its own. Each has its fastest batch setting, which may have fewer pairs per forward.

TRL's settings, each with `precompute_ref_log_probs`, without gradient checkpointing, SDPA attention; the fastest is \
the peer. Its chunked log-probabilities are always on; `padding_free` has no effect in 1.16; Liger's and its own \
Triton kernels need a GPU.

{tried}

### Profile

{profile_table(operators)}"""
