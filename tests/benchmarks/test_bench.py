"""The benchmarks: made-up data, processes, the page, and that both trainers compute the same loss."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from benchmarks import data, table, verification
from benchmarks.interleaved import Rounds, Run, RunFailed, alone
from benchmarks.table import Line, Result

pytestmark = pytest.mark.unit


def words(text: str) -> int:
    return len(text.split())


def counts(rounds: Rounds, up_to: int) -> str:
    for number in range(up_to):
        rounds.begin()
        rounds.end(number)
    return "over"


def fails(rounds: Rounds) -> None:
    raise ValueError("on purpose")


def test_made_up_pairs_have_lengths_in_range_and_are_the_same_for_a_seed():
    found = data.made_up(40, words)
    assert found == data.made_up(40, words)
    assert found != data.made_up(40, words, seed=1)
    prompts = sorted(words(pair.prompt) for pair in found)
    responses = sorted(words(text) for pair in found for text in pair[1:])
    sizes = data.GSM8K_LIKE
    assert sizes.prompt.least <= prompts[0] <= prompts[-1] <= sizes.prompt.most
    assert sizes.response.least <= responses[0] <= responses[-1] <= sizes.response.most
    assert len(set(responses)) > 20


def test_gsm8k_takes_another_answer_for_the_opponents(tmp_path: Path):
    (tmp_path / "gsm8k").mkdir()
    rows = "".join(f'{{"question": "q{i}", "answer": "a{i}"}}\n' for i in range(4))
    (tmp_path / "gsm8k" / "train.jsonl").write_text(rows)
    assert data.gsm8k(tmp_path, 2) == [("q0", "a0", "a1"), ("q1", "a1", "a2")]


def test_a_run_reports_its_rounds_and_its_error():
    with Run(counts, up_to=2) as run:
        assert [run.round(), run.round(), run.result()] == [0, 1, "over"]
    with pytest.raises(RunFailed, match="on purpose"):
        alone(fails)
    assert multiprocessing.active_children() == []


def test_verifiers_and_libraries_find_the_same_responses_right(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verification, "CASES", 40)
    lines = verification.measure(2).lines
    assert [len(line.ours) for line in lines] == [2, 2]
    assert min(value for line in lines for value in (*line.ours, *line.peer)) > 0


def test_the_page_shows_each_result_and_keeps_what_is_not_its_own(tmp_path: Path):
    kept = "<!-- objectives -->\nanother's table\n<!-- /objectives -->"
    (tmp_path / "README.md").write_text(f"last month\n\n{kept}\n")
    line = Line("training step", "tokens/s", [300.0, 330.0, 270.0], [100.0, 100.0, 100.0], "≥", 3.5)
    table.save(Result("step", [line], "how it was measured"), tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert (
        "| training step | 300 [270, 330] tokens/s | 100 [100, 100] tokens/s | 3 [2.7, 3.3]× | ≥ 3.5× | **no** | 3 |"
        in page
    )
    assert kept in page
    assert "last month" not in page
    assert table.load(tmp_path)[0].lines == [line]


def test_spin_with_the_initial_opponent_is_dpo(tiny_model: Path):
    pytest.importorskip("trl")
    from benchmarks import trainers
    from benchmarks.step import TOLERANCE

    case = trainers.Case(tiny_model, "float32", batches=1, batch_size=2)
    one, other = alone(trainers.our_loss, case=case), alone(trainers.peer_loss, case=case)
    assert one == pytest.approx(other, rel=TOLERANCE)
    assert one != pytest.approx(0.6931, abs=1e-3)  # log 2: policy and opponent would be the same


def test_what_a_step_must_multiply_is_counted(tmp_path: Path):
    """Two layers of 16·(8·(2 + 1 + 1 + 2) + 3·24) weights and an lm_head of 16·32, each four FLOP per token in LoRA."""
    from transformers import LlamaConfig

    from benchmarks import gpu
    from benchmarks.trainers import Case, tokens_of
    from tests.conftest import build_tokenizer

    LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
    ).save_pretrained(tmp_path)
    build_tokenizer(tmp_path)
    case = Case(tmp_path, "bfloat16", batches=gpu.WARM_UP + 1, batch_size=1)
    tera, tokens = gpu._work(case)
    group = next(g for g in tokens_of(case) if len(g) == tokens)
    responses = sum(map(len, group.responses))
    flop = 4 * (2 * 16 * (8 * 6 + 3 * 24) * tokens + 16 * 32 * responses)
    assert tera * 1e12 * responses == pytest.approx(flop)


def test_trl_with_default_settings_starts_without_our_process_settings(monkeypatch):
    from benchmarks import step
    from benchmarks.trainers import Setting
    from iris_core.execution.launch import CPU_SETTINGS

    seen = []
    monkeypatch.setattr(step, "Run", lambda *_, **__: seen.append(CPU_SETTINGS.keys() & os.environ))
    for name, value in CPU_SETTINGS.items():
        monkeypatch.setenv(name, value)
    for default_settings in (True, False):
        step._peer_run(None, Setting(1, default_settings=default_settings))
    assert seen == [set(), set(CPU_SETTINGS)]
