"""The stage `evaluate`: settings and messages at once, and the real stage on a tiny model with the miniature."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from iris_core import evaluate
from iris_core.common.digest import json_digest
from iris_core.common.errors import ConfigError, EvaluationError, VerificationError
from iris_core.config import EvaluationPart, VerificationPart
from iris_core.data.pairs import Pair, write_pairs
from iris_core.data.templates import Template
from iris_core.evaluation import harness, miniature
from iris_core.evaluation.benchmarks import BENCHMARKS, benchmark
from iris_core.evaluation.mirror import write_card, write_rows
from iris_core.evaluation.records import protocol_settings
from iris_core.execution.item_worker import LABEL_VARIABLE
from iris_core.execution.launch import launch
from iris_core.execution.supervision import command_line, labelled
from iris_core.pipeline.scores import BenchmarkRecord, ProtocolSettings
from iris_core.pipeline.specs import EvaluateSpec
from iris_core.pipeline.verifier import verifier_digest
from iris_core.store import Artifact, Execution, Manifest, Policy, run_stage
from iris_core.store.units import Units
from tests.conftest import build_model
from tests.iris_core.small_tokenizers import DATED, byte_level

PATTERN = r"Answer: *(.+)"
unit = pytest.mark.unit
integration = pytest.mark.integration


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    rows = [
        Pair(
            f"id{i}",
            f"What is {i} + 1?",
            f"It is {i + 1}.\nAnswer: {i + 1}",
            [1, 60 + i, 2],
            [2],
            "heldout",
        )
        for i in range(5)
    ]
    write_pairs(
        [
            Pair("t", "train only", "Answer: 0", [1], [2]),
            *rows,
            Pair("n", "Why?", "No pattern here", [1], [2], "heldout"),
        ],
        path,
    )
    return Artifact.of(path)


def make_spec(
    model: Path,
    pairs: Artifact,
    names: list[str],
    data: Path | None = miniature.FOLDER,
    **changes: Any,
) -> EvaluateSpec:
    part = {
        "benchmarks": names,
        "data_dir": "miniature",
        "backend": "hf",
        "max_gen_tokens": 8,
    } | changes.pop("part", {})
    fields = {
        "policy": Policy(model=Artifact.of(model)),
        "evaluation": EvaluationPart(**part),
        "data": data and Artifact.of(data),
        "pairs": pairs,
        "answer_pattern": None,
        "stop_token_ids": [2],
        "chat_template_kwargs": {},
        "template_date": datetime.date(2024, 7, 26),
        "max_new_tokens": 8,
        "dtype": "float32",
        "seed": 0,
    }
    return EvaluateSpec(**(fields | changes))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache of prepared data for this session, not the user's."""
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path_factory.getbasetemp() / "iris-cache"))


@unit
def test_the_protocol_differs_by_settings_not_by_model(tiny_model: Path, pairs: Artifact) -> None:
    def of(**changes: Any) -> ProtocolSettings:
        return protocol_settings(make_spec(tiny_model, pairs, ["musr"], **changes), benchmark("musr"))

    other = Policy(model=Artifact(path=tiny_model, digest="another"))
    assert of() == of(policy=other) == of(seed=7)
    for change in (
        {"part": {"limit": 2}},
        {"part": {"apply_chat_template": True}},
        {"dtype": "bfloat16"},
        {"data": None},
    ):
        assert of() != of(**change)
    assert of().label == "miniature"
    assert of(data=None).label is None
    assert of().max_gen_tokens is None  # MUSR generates nothing


@unit
def test_the_average_is_the_plain_mean_with_its_error() -> None:
    # (0.2 + 0.5) / 2 = 0.35; sqrt(0.03^2 + 0.04^2) / 2 = 0.025
    records = {
        "musr": BenchmarkRecord(benchmark="musr", value=0.2, stderr=0.03, protocol="a", items=[]),
        "gpqa": BenchmarkRecord(benchmark="gpqa", value=0.5, stderr=0.04, protocol="b", items=[]),
    }
    average = evaluate.summarize(records, None).average
    assert average.value == pytest.approx(0.35)
    assert average.stderr == pytest.approx(0.025)
    assert average.benchmarks == 2
    assert evaluate.summarize({}, None).average is None


@unit
def test_auto_is_hf_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert harness.resolve_backend("auto", Execution()) == "hf"
    assert harness.resolve_backend("hf", Execution()) == "hf"


@unit
def test_a_missing_mirror_says_how_to_make_one(tiny_model: Path, pairs: Artifact, tmp_path: Path) -> None:
    gone = Artifact(path=tmp_path / "gone", digest="0")
    with pytest.raises(EvaluationError, match=r"there is no folder .*gone: make a mirror .*iris_core.mirror --out"):
        evaluate.evaluate(make_spec(tiny_model, pairs, ["musr"]).model_copy(update={"data": gone}), tmp_path)


@unit
def test_a_changed_mirror_is_noticed(tiny_model: Path, pairs: Artifact, tmp_path: Path) -> None:
    changed = Artifact(path=miniature.FOLDER, digest="0")
    with pytest.raises(EvaluationError, match="has changed since this spec was made"):
        evaluate.evaluate(make_spec(tiny_model, pairs, ["musr"]).model_copy(update={"data": changed}), tmp_path)


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the engine was opened")

    monkeypatch.setattr(harness, "open_model", fail)


@unit
@pytest.mark.usefixtures("no_engine")
def test_missing_data_is_named_before_the_engine_opens(tiny_model: Path, pairs: Artifact, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    write_rows(mirror / "openai/gsm8k/main", {"train": [{"question": "?", "answer": "#### 1"}]})
    write_card(mirror / "openai/gsm8k")
    with pytest.raises(
        EvaluationError,
        match=r"gsm8k cannot read .*openai/gsm8k, config main, splits test, train.*--benchmarks gsm8k",
    ):
        evaluate.evaluate(make_spec(tiny_model, pairs, ["gsm8k"], mirror), tmp_path)
    with pytest.raises(EvaluationError, match=r"has no data set TAUR-Lab/MuSR.*--benchmarks musr"):
        evaluate.evaluate(make_spec(tiny_model, pairs, ["musr"], mirror), tmp_path)


@unit
@pytest.mark.usefixtures("no_engine")
def test_no_hub_and_no_mirror_is_one_message(
    tiny_model: Path, pairs: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        EvaluationError,
        match=r"musr needs TAUR-Lab/MuSR, which cannot be loaded from the hub.*or to `miniature`",
    ):
        evaluate.evaluate(make_spec(tiny_model, pairs, ["musr"], None), tmp_path)


@integration
def test_the_ten_load_from_the_miniature_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"asked the network: {args}")

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    here = Path.cwd()
    tasks = harness.load_tasks(list(BENCHMARKS), Artifact.of(miniature.FOLDER))
    assert Path.cwd() == here
    assert {name: len(found["tasks"]) for name, found in tasks.items()} == {
        "gsm8k": 1,
        "math": 7,
        "musr": 3,
        "mmlu": 57,
        "mmlu_pro": 1,
        "gpqa": 3,
        "hellaswag": 1,
        "winogrande": 1,
        "bbh": 24,
        "ifeval": 1,
    }


def run(spec: EvaluateSpec, out: Path) -> Manifest:
    return run_stage(spec, out, evaluate.evaluate)


@integration
def test_the_stage_scores_answers_and_reports(tiny_model: Path, pairs: Artifact, tmp_path: Path) -> None:
    spec = make_spec(tiny_model, pairs, ["gsm8k", "musr", "ifeval"], answer_pattern=PATTERN)
    manifest = run(spec, tmp_path / "out")
    assert set(manifest.outputs) == {"scores", "heldout"}
    assert manifest.metrics["label"] == "miniature"
    assert manifest.metrics["average"]["benchmarks"] == 3
    assert manifest.metrics["benchmarks"]["gsm8k"]["recorded"].keys() == {"exact_match,flexible-extract"}
    record = json.loads((tmp_path / "out/scores/gsm8k.json").read_text())
    expected = {
        "model": spec.policy.model.digest,
        "adapter": None,
        "benchmark": "gsm8k",
        "task": "gsm8k",
        "task_version": 3.0,
        "lm_eval": "0.4.13",
        "shots": 5,
        "limit": None,
        "apply_chat_template": False,
        "fewshot_seed": 1234,
        "filter": "strict-match",
        "backend": "hf",
        "n": 6,
        "metric": "exact_match",
        "max_gen_tokens": 8,
        "label": "miniature",
    }
    assert {key: record[key] for key in expected} == expected
    decides = {*ProtocolSettings.model_fields, "task_version", "items_digest"}
    assert record["protocol"] == json_digest({key: record[key] for key in decides})
    assert len(record["items"]) == 6
    rows = pq.read_table(manifest.artifact("heldout").path).to_pylist()
    assert [row["prompt_id"] for row in rows] == [f"id{i}" for i in range(5)]
    found = manifest.metrics["heldout"]
    assert found["n"] == 5
    assert found["exact_match"]["low"] <= found["exact_match"]["value"] <= found["exact_match"]["high"]
    assert run(spec, tmp_path / "out").reused


@integration
@pytest.mark.parametrize(("stop", "correct"), [(list(range(384)), 1.0), ([0], 0.0)])
def test_the_verifier_says_which_held_out_answers_are_correct(
    tiny_model: Path, pairs: Artifact, tmp_path: Path, stop: list[int], correct: float
) -> None:
    """It judges all held-out answers, also those without a pattern. An answer that was cut is not correct."""
    code = 'import sys; [print(\'{"verdict": "right"}\') for line in sys.stdin]'
    verification = VerificationPart(kind="command", command=[sys.executable, "-c", code])
    digest = verifier_digest(verification)
    spec = make_spec(tiny_model, pairs, [], verification=verification, verifier_digest=digest, stop_token_ids=stop)
    manifest = run(spec, tmp_path / "out")
    rows = pq.read_table(manifest.artifact("heldout").path).to_pylist()
    assert [row["prompt_id"] for row in rows] == [*(f"id{i}" for i in range(5)), "n"]
    assert manifest.metrics["heldout"]["exact_match"]["value"] == correct


@integration
def test_answers_that_the_verifier_cannot_judge_are_told(tiny_model: Path, pairs: Artifact, tmp_path: Path) -> None:
    """Not correct, with a reason each and a warning; if none could be judged, there is no accuracy."""

    def judged(name: str, fails: str) -> Manifest:
        (tmp_path / name).write_text(
            "import json, sys, time\n"
            "for line in sys.stdin:\n"
            f"    if {fails}:\n        sys.exit('no')\n"
            "    print(json.dumps({'verdict': 'wrong', 'reason': 'so'}), flush=True)\n"
        )
        verification = VerificationPart(kind="command", command=[sys.executable, str(tmp_path / name)])
        digest = verifier_digest(verification)
        spec = make_spec(tiny_model, pairs, [], verification=verification, verifier_digest=digest)
        return run(spec, tmp_path / f"out-{name}")

    manifest = judged("some.py", "json.loads(line)['reference'] == 'No pattern here'")
    rows = pq.read_table(manifest.artifact("heldout").path).to_pylist()
    crash = "ended with exit code 1: no"
    assert [(row["verdict"], row["reason"], row["correct"]) for row in rows] == [
        *[("wrong", "so", False)] * 5,
        ("undecided", crash, False),
    ]
    assert manifest.metrics["warnings"] == [
        f"verification: 1 of 6 held-out answers are undecided, 1 of them for the reason {crash!r}"
    ]
    with pytest.raises(
        VerificationError, match=r"gives no verdict on any of 6 responses \(ended with exit code 1: no\)"
    ):
        judged("all.py", "True")


@integration
def test_two_workers_give_the_scores_of_one_engine(tiny_model: Path, pairs: Artifact, tmp_path: Path) -> None:
    """Also if one of them is killed in the middle. Both begin with what generates: the longest."""
    spec = make_spec(tiny_model, pairs, ["musr", "gsm8k"], answer_pattern=PATTERN)
    one, lines = run(spec, tmp_path / "one"), []
    killed: list[psutil.Process] = []

    def kill_one(line: str) -> None:
        lines.append(line)
        if "opened the engine" in line and not killed:
            killed.extend(process for each in labelled(LABEL_VARIABLE).values() for process in each)
            number = line.split(":")[0]
            next(each for each in killed if {number, str(tmp_path / "two")} <= {*command_line(each)}).kill()

    two = launch(spec.model_copy(update={"execution": Execution(gpus_per_node=2)}), tmp_path / "two", on_log=kill_one)
    assert any("a worker is lost (was killed by SIGKILL)" in line for line in lines)
    assert killed
    assert two.outputs["heldout"].digest == one.outputs["heldout"].digest
    for name in ("musr", "gsm8k"):
        first, second = (BenchmarkRecord.read(each.folder / f"scores/{name}.json") for each in (one, two))
        assert first.model_copy(update={"seconds": second.seconds}) == second


@unit
def test_transformers_uses_one_gpu(tiny_model: Path, pairs: Artifact, tmp_path: Path) -> None:
    spec = make_spec(tiny_model, pairs, ["musr"], execution=Execution(tensor_parallel=2))
    with pytest.raises(ConfigError, match=r"execution.tensor_parallel: 2, but evaluation.backend is hf, which"):
        evaluate.evaluate(spec, tmp_path)


def build_adapter(model: Path, folder: Path) -> Path:
    """Saves a LoRA adapter on `model` that changes what it says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)
    return folder


@integration
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
def test_scores_are_those_of_the_harness_s_own_model(
    tiny_model: Path, pairs: Artifact, tmp_path: Path, adapted: bool
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    adapter = build_adapter(tiny_model, tmp_path / "adapter") if adapted else None
    policy = Policy(model=Artifact.of(tiny_model), adapter=adapter and Artifact.of(adapter))
    names = ["musr", "winogrande", "gpqa", "mmlu_pro", "gsm8k"]
    manifest = run(make_spec(tiny_model, pairs, names, policy=policy), tmp_path / "out")
    theirs = HFLM(pretrained=str(tiny_model), peft=adapter and str(adapter), device="cpu", dtype="float32")
    for name in names:
        item = benchmark(name)
        tasks = harness.load_tasks([name], Artifact.of(miniature.FOLDER))[name]
        found = lm_eval.simple_evaluate(
            theirs,
            tasks=(list(tasks["groups"].values()) or list(tasks["tasks"].values()))[:1],
            num_fewshot=item.shots,
            gen_kwargs={"max_gen_toks": 8} if item.generates else None,
            task_manager=harness.task_manager((name,)),
            bootstrap_iters=0,
        )
        assert found is not None
        ours = json.loads((manifest.folder / f"scores/{name}.json").read_text())
        samples = [s for task in found["samples"].values() for s in task]
        assert ours["adapter"] == (policy.adapter and policy.adapter.digest)
        assert ours["value"] == found["results"][item.task][f"{item.metric},{item.filter}"]
        assert ours["items"] == [s[item.metric] for s in samples if s["filter"] == item.filter]


@integration
def test_a_killed_stage_redoes_no_benchmark_that_has_a_record(
    tiny_model: Path, pairs: Artifact, tmp_path: Path
) -> None:
    spec = make_spec(tiny_model, pairs, ["musr", "bbh", "gpqa"])
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    out, kept = tmp_path / "out", {}
    command = [sys.executable, "-m", "iris_core.evaluate", "--spec", str(tmp_path / "spec.json"), "--out", str(out)]
    while not 1 <= len(kept) < 3:  # on a busy machine it may have finished all before anybody looks
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(command, start_new_session=True)
        while not any((out / "scores").glob("*.json")) and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept = {file: file.stat().st_mtime_ns for file in (out / "scores").glob("*.json")}
    assert not (out / "manifest.json").exists()
    manifest = run(spec, out)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    whole = run(spec, tmp_path / "uninterrupted")
    assert manifest.metrics == whole.metrics


@integration
def test_a_record_made_with_other_settings_is_redone(tiny_model: Path, pairs: Artifact, tmp_path: Path) -> None:
    spec = make_spec(tiny_model, pairs, ["musr", "gpqa"])
    folder = tmp_path / "scores"
    run(spec, tmp_path)
    (tmp_path / "manifest.json").unlink()
    record = json.loads((folder / "gpqa.json").read_text())
    with Units(tmp_path, spec.key()).writing(folder / "gpqa.json") as place:
        place.write_text(json.dumps(record | {"backend": "vllm", "value": 2.0}))
    kept = (folder / "musr.json").stat().st_mtime_ns
    assert run(spec, tmp_path).metrics["benchmarks"]["gpqa"]["value"] == record["value"]
    assert (folder / "musr.json").stat().st_mtime_ns == kept


@integration
def test_the_chat_template_changes_the_prompts_and_the_protocol(
    tiny_model: Path, pairs: Artifact, tmp_path: Path
) -> None:
    plain = run(make_spec(tiny_model, pairs, ["winogrande"]), tmp_path / "plain")
    chat = run(
        make_spec(tiny_model, pairs, ["winogrande"], part={"apply_chat_template": True}),
        tmp_path / "chat",
    )
    scores = [manifest.metrics["benchmarks"]["winogrande"] for manifest in (plain, chat)]
    assert scores[0]["protocol"] != scores[1]["protocol"]
    assert scores[0]["n"] == scores[1]["n"] == 6


@integration
def test_answers_are_greedy_whatever_generation_config_says(pairs: Artifact, tmp_path: Path) -> None:
    """A repetition penalty and beams in the model's folder change no answer to a held-out prompt."""
    found = []
    for penalty in (1.0, 1.8):
        model = tmp_path / f"model-{penalty}"
        build_model(model)
        file = model / "generation_config.json"
        settings = {**json.loads(file.read_text()), "repetition_penalty": penalty, "num_beams": 2}
        file.write_text(json.dumps(settings))
        spec = make_spec(model, pairs, ["gsm8k"], answer_pattern=PATTERN)
        manifest = run(spec, tmp_path / f"out-{penalty}")
        rows = pq.read_table(manifest.artifact("heldout").path).to_pylist()
        found.append([row["response"] for row in rows])
    assert found[0] == found[1]


@integration
def test_benchmarks_are_asked_by_the_experiment_s_template(tiny_model: Path) -> None:
    tokenizer = byte_level(f"{DATED}{{{{ tone }}}}")
    template = Template(tokenizer, {"tone": "brief"}, datetime.date(2025, 1, 2))
    policy = Policy(model=Artifact.of(tiny_model))
    lm = harness.open_model(
        policy,
        "hf",
        "float32",
        template=template,
        stop_token_ids=[2, 60],
        trust_remote_code=False,
        batch_size=2,
    )
    asked = lm.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert asked.startswith("<|im_start|>system\nNow 02 Jan 2025")
    assert asked.endswith("assistant\nbrief")
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer"}]
    assert "The answer" in lm.apply_chat_template(begun, add_generation_prompt=False)[-15:]
    context = torch.tensor([[1, 70, 80]])

    def generated(stop_token_ids: list[int]) -> list[int]:
        lm.stop_token_ids = stop_token_ids
        return list(lm._model_generate(context, 12, [], attention_mask=context**0)[0, 3:].tolist())

    whole = generated([383])
    stop = next(token for token in whole if token != whole[0])
    assert len(whole) == 9
    assert generated([stop, 383]) == whole[: whole.index(stop) + 1]


@integration
def test_vllm_gives_the_scores_of_transformers(pairs: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    model = tmp_path / "model"
    build_model(model, hidden_size=128)  # vLLM's attention on CPU wants heads of 32 or more
    names = ["gsm8k", "musr", "mmlu_pro", "hellaswag", "winogrande"]
    adapter = Artifact.of(build_adapter(model, tmp_path / "adapter"))
    policy = Policy(model=Artifact.of(model), adapter=adapter)
    found = {}
    for backend in ("vllm", "hf"):
        changes = {"policy": policy, "part": {"backend": backend}}
        spec = make_spec(model, pairs, names, answer_pattern=PATTERN, **changes)
        (tmp_path / "spec.json").write_text(spec.model_dump_json())
        out = tmp_path / backend
        command = [sys.executable, "-m", "iris_core.evaluate"]
        subprocess.run([*command, "--spec", str(tmp_path / "spec.json"), "--out", str(out)], check=True)
        answers = pq.read_table(out / "heldout.parquet")["response"].to_pylist()
        records = [json.loads((out / f"scores/{name}.json").read_text()) for name in names]
        assert {record["backend"] for record in records} == {backend}
        found[backend] = [record["items"] for record in records], answers
    assert found["vllm"] == found["hf"]
