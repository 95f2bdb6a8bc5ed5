"""The comparison on a real model: its data, its arms, and the intervals of its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.verified import measures
from benchmarks.verified.arms import ANNOTATED, ARMS, SAMPLES, TEST, UNANNOTATED, VALIDATION, arm_experiment, write_data
from benchmarks.verified.measures import Measured, merge
from benchmarks.verified.report import write_report
from iris_core.store import Artifact, Policy


@pytest.mark.unit
def test_no_prompt_is_in_two_sets(tmp_path: Path) -> None:
    write_data(0, tmp_path)
    prompts = {
        file.stem: [json.loads(line)["prompt"] for line in file.read_text().splitlines()]
        for file in tmp_path.glob("*.jsonl")
    }
    assert {name: len(each) for name, each in prompts.items()} == {
        "annotated": ANNOTATED,
        "prompts": UNANNOTATED,
        "validation": VALIDATION,
        "test": TEST,
    }
    everything = [prompt for each in prompts.values() for prompt in each]
    assert len(set(everything)) == len(everything)


@pytest.mark.unit
def test_arms_with_verdicts_take_no_more_than_a_few_steps_more(tmp_path: Path) -> None:
    steps = {}
    for arm in ARMS:
        loop = arm_experiment(arm, 0, tmp_path / "model", tmp_path / "data", tmp_path / "store")
        prompts = ANNOTATED + (UNANNOTATED if loop.data.prompts_path else 0)
        steps[arm] = loop.training.epochs * -(-prompts // loop.training.batch_size)
        assert loop.objective.learns_from_verdicts == (arm in ("RFT", "IRIS, verified"))
        assert (loop.generation.samples == SAMPLES) == loop.objective.learns_from_verdicts
    assert steps == {"SFT continued": 48, "IRIS, plain": 48, "RFT": 50, "IRIS, verified": 50}


@pytest.mark.integration
def test_another_start_is_merged_anew(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start of an earlier run, under other settings, must not be taken for that of this one."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(measures, "alone", lambda work, **given: work(None, **given))
    weights = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        adapter = tmp_path / f"adapter-{seed}"
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(adapter)
        merged = merge(Policy(model=Artifact.of(tiny_model), adapter=Artifact.of(adapter)), "start-0", tmp_path)
        weights.append(load_file(merged / "model.safetensors"))
    name = next(name for name in weights[0] if name.endswith("q_proj.weight"))
    assert torch.equal(weights[0][name], weights[2][name])
    assert not torch.allclose(weights[0][name], weights[1][name])
    assert len(list(tmp_path.glob("start-0-*"))) == 2


@pytest.mark.unit
def test_the_report_pairs_prompts(tmp_path: Path) -> None:
    """Ten prompts of two seeds; RFT answers two more of each seed than the others."""
    some, more = np.array([1.0] * 4 + [0.0] * 6), np.array([1.0] * 6 + [0.0] * 4)
    nats, tokens = np.full(10, -6.0), np.full(10, 12.0)
    found = {arm: Measured(some, some, nats, tokens, 96) for arm in ("SFT, the start", *ARMS)}
    found["RFT"] = Measured(more, some, nats, tokens, 70)
    write_report([found, found], tmp_path / "report.md", 60.0)
    text = (tmp_path / "report.md").read_text().replace("\\", "")  # as Markdown shows it
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    by_name = {row[0]: row[1:] for row in rows}
    assert text.startswith("2 seeds, 1 minutes on ")
    assert by_name["RFT"][0].startswith("0.600 [")
    assert by_name["RFT"][2] == "-0.500 [-0.500, -0.500]"
    assert by_name["RFT"][3] == "70, 70"
    assert by_name["RFT − SFT continued"][0].startswith("+20.0 [")
    assert by_name["RFT − SFT continued"][1:] == ["+20.0, +20.0", "+0.0 [+0.0, +0.0]", "+0.0, +0.0"]
    assert by_name["IRIS, verified − RFT"][0].startswith("-20.0 [")


@pytest.mark.unit
def test_the_command_starts_and_no_seed_begins_too_late(tmp_path: Path) -> None:
    """Its workers import what they run: a package's `__main__` cannot be imported by them."""
    command = [sys.executable, "-m", "benchmarks.verified", "--minutes", "-1", "--out", str(tmp_path), "--jobs", "2"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "no seed has begun\n"
    assert list(tmp_path.iterdir()) == []
