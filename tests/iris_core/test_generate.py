"""Generation on a tiny real model: resuming, counting, several processes, and the adapter."""

from __future__ import annotations

import copy
import json
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from iris_core import generate as generate_module
from iris_core.common.errors import ConfigError, DataError, ModelError
from iris_core.config import GenerationPart, VerificationPart, parse_experiment
from iris_core.execution.item_worker import LABEL_VARIABLE
from iris_core.execution.launch import launch
from iris_core.execution.supervision import command_line, labelled
from iris_core.generate import generate, summarize, warnings
from iris_core.generation import engines
from iris_core.modeling import loading
from iris_core.pipeline import plan
from iris_core.pipeline.verifier import verifier_digest
from iris_core.prepare import prepare
from iris_core.store import Artifact, Execution, Policy, run_stage
from iris_core.store.units import Units
from tests.conftest import build_model
from tests.iris_core.small_tokenizers import CHATML, byte_level
from tests.processes import wait_for


def experiment(tiny_model, pairs_file, backend="transformers", **generation):
    return parse_experiment(
        {
            "name": "test",
            "model": {"path": str(tiny_model), "dtype": "float32"},
            "data": {"path": str(pairs_file), "heldout": 4},
            "generation": {
                "backend": backend,
                "max_new_tokens": 12,
                "shard_size": 10,
                **generation,
            },
        }
    )


def spec_of(config, tmp_path):
    prepared = plan.Prepared.of(run_stage(plan.prepare_spec(config), tmp_path / "prepare", prepare))
    return plan.generate_spec(config, prepared, prepared.start(config))


def several(spec, samples=2):
    """The stage with `samples` responses to each prompt that is trained on, and no verifier."""
    return spec.model_copy(update={"generation": spec.generation.model_copy(update={"samples": samples})})


JUDGE = """
import json, sys
for line in sys.stdin:
    verdict = ("right", "wrong", "undecided")[len(json.loads(line)["response"].encode("utf-8", "replace")) % 3]
    print(json.dumps({"verdict": verdict, "reason": "its length"}))
"""


def judged(spec, tmp_path):
    """The stage with a verifier: a program that looks at the length of a response."""
    (tmp_path / "judge.py").write_text(JUDGE)
    settings = VerificationPart(kind="command", command=[sys.executable, str(tmp_path / "judge.py")])
    return spec.model_copy(update={"verification": settings, "verifier_digest": verifier_digest(settings)})


def test_a_verifier_that_has_changed_judges_nothing(tiny_model, pairs_file, tmp_path):
    spec = judged(spec_of(experiment(tiny_model, pairs_file), tmp_path), tmp_path)
    (tmp_path / "judge.py").write_text(JUDGE + "# another one\n")
    with pytest.raises(DataError, match="^verification: its files have changed since this spec was written: run again"):
        run_stage(spec, tmp_path / "out", generate)


def verdicts(manifest):
    return pq.read_table(manifest.artifact("verdicts").path).to_pylist()


def assert_judged(manifest):
    """Each response has the verdict that its length decides."""
    for row, response in zip(verdicts(manifest), responses(manifest), strict=True):
        assert (row["prompt_id"], row["sample"]) == (response["prompt_id"], response["sample"])
        name = ("right", "wrong", "undecided")[len(response["response"].encode()) % 3]
        cut = name == "right" and response["finish_reason"] == "length"
        assert (row["verdict"], row["reason"]) == (("undecided", "truncated") if cut else (name, "its length"))


def responses(manifest):
    return pq.read_table(manifest.artifact("responses").path).to_pylist()


def on(spec, devices, **execution):
    return spec.model_copy(update={"execution": Execution(gpus_per_node=devices, **execution)})


def shards(folder):
    """When each finished shard was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("responses/shard-*")}


def workers(folder):
    found = [process for each in labelled(LABEL_VARIABLE).values() for process in each]
    return [process for process in found if {"--items", str(folder)} <= {*command_line(process)}]


@pytest.mark.integration
@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_a_resumed_run_gives_the_responses_of_an_uninterrupted_one(
    tiny_model, pairs_file, tmp_path, backend, monkeypatch
):
    spec = several(spec_of(experiment(tiny_model, pairs_file, backend), tmp_path))
    whole = run_stage(spec, tmp_path / "whole", generate)
    assert whole.metrics["prompts"] == 24
    samples = {(row["prompt_id"], row["sample"]): tuple(row["token_ids"]) for row in responses(whole)}
    assert len(samples) == len(responses(whole)) == 44  # of 20 prompts two, of 4 held-out ones one
    assert len(set(samples.values())) > 30  # each response has a seed of its own
    shards = [pq.read_table(file) for file in sorted(whole.artifact("responses").path.glob("*.parquet"))]
    assert [len(set(shard["prompt_id"].to_pylist())) for shard in shards] == [10, 10, 4]  # whole prompts
    written = []
    right = generate_module.write_shard

    def dies(path, *arguments):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        right(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generate_module, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            run_stage(spec, tmp_path / "killed", generate)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "responses").glob("shard-*")}
    assert len(kept) == 1
    resumed = run_stage(spec, tmp_path / "killed", generate)
    assert responses(resumed) == responses(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert resumed.outputs["responses"].digest == whole.outputs["responses"].digest


@pytest.mark.integration
def test_each_response_has_a_verdict_and_a_run_killed_between_them_samples_nothing_again(
    tiny_model, pairs_file, tmp_path, monkeypatch
):
    config = experiment(tiny_model, pairs_file, max_new_tokens=30)
    spec = judged(several(spec_of(config, tmp_path), 3), tmp_path)
    whole = run_stage(spec, tmp_path / "whole", generate)
    assert_judged(whole)
    written, right = [], generate_module.write_verdicts

    def dies(path, *arguments):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        right(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generate_module, "write_verdicts", dies)
        with pytest.raises(KeyboardInterrupt):
            run_stage(spec, tmp_path / "killed", generate)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("[rv]*/*.parquet")}
    assert len(kept) == 3  # two shards of responses, and the verdicts on the first
    resumed = run_stage(spec, tmp_path / "killed", generate)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for name in ("responses", "verdicts"):
        assert resumed.outputs[name].digest == whole.outputs[name].digest
    (tmp_path / "killed" / "manifest.json").unlink()
    next((tmp_path / "killed" / "verdicts").iterdir()).write_bytes(b"damaged")
    judged_again = run_stage(spec, tmp_path / "killed", generate)
    assert judged_again.outputs["verdicts"].digest == whole.outputs["verdicts"].digest
    assert judged_again.metrics["tokens_per_second"] is None  # no engine was needed
    (tmp_path / "killed" / "manifest.json").unlink()
    min((tmp_path / "killed" / "responses").iterdir()).write_bytes(b"damaged")
    sampled_again = run_stage(spec, tmp_path / "killed", generate)
    assert sampled_again.outputs["verdicts"].digest == whole.outputs["verdicts"].digest
    (tmp_path / "killed" / "manifest.json").unlink()
    first, *others = sorted((tmp_path / "killed" / "verdicts").iterdir())
    before = [path.stat().st_mtime_ns for path in (first, *others)]
    shard = min((tmp_path / "killed" / "responses").iterdir())
    table = pq.read_table(shard)
    longer = pa.array([f"{text}." for text in table["response"].to_pylist()])
    with Units(tmp_path / "killed", spec.key()).writing(shard) as place:  # as a run on another machine may have
        pq.write_table(table.set_column(table.schema.get_field_index("response"), "response", longer), place)
    mixed = run_stage(spec, tmp_path / "killed", generate)
    after = [path.stat().st_mtime_ns for path in (first, *others)]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, *(False for _ in others)]
    assert_judged(mixed)


@pytest.mark.integration
@pytest.mark.parametrize(("backend", "size"), [("transformers", 4), ("vllm", 8)])
def test_two_workers_give_the_responses_of_one_engine(tiny_model, pairs_file, tmp_path, backend, size):
    spec = judged(several(spec_of(experiment(tiny_model, pairs_file, backend, shard_size=size), tmp_path)), tmp_path)
    one = run_stage(on(spec, 1), tmp_path / "one", generate)
    seen, done = {}, []

    def watch(event):
        done.append(event.done)
        seen.update(shards(tmp_path / "two") | seen)

    two = launch(on(spec, 2), tmp_path / "two", watch)
    assert responses(two) == responses(one)
    for name in ("responses", "verdicts"):
        assert two.outputs[name].digest == one.outputs[name].digest
    assert two.key == one.key
    assert done == list(range(0, 25, size))
    assert seen == shards(tmp_path / "two")  # no shard was written twice
    assert two.metrics["tokens_per_second"] * two.seconds >= two.metrics["tokens"]


@pytest.mark.integration
def test_a_worker_killed_in_the_middle_costs_its_shard_only(tiny_model, pairs_file, tmp_path):
    config = experiment(tiny_model, pairs_file, shard_size=2, max_new_tokens=100)
    spec, folder = on(spec_of(config, tmp_path), 2), tmp_path / "killed"
    whole = run_stage(on(spec, 1), tmp_path / "whole", generate)
    kept, lines = {}, []

    def kill():
        wait_for(lambda: shards(folder))
        workers(folder)[0].kill()
        kept.update(shards(folder))

    killer = threading.Thread(target=kill)
    killer.start()
    killed = launch(spec, folder, on_log=lines.append)
    killer.join()
    assert any("a worker is lost (was killed by SIGKILL)" in line for line in lines)
    assert killed.outputs["responses"].digest == whole.outputs["responses"].digest
    assert kept
    assert shards(folder) | kept == shards(folder)
    assert not workers(folder)


@pytest.mark.integration
def test_transformers_uses_one_gpu(tiny_model, pairs_file, tmp_path):
    spec = on(spec_of(experiment(tiny_model, pairs_file), tmp_path), 2, tensor_parallel=2)
    with pytest.raises(ConfigError) as error:
        run_stage(spec, tmp_path / "out", generate)
    assert str(error.value) == (
        "execution.tensor_parallel: 2, but generation.backend is transformers, which uses one GPU: set it to 1, or use "
        "vllm"
    )


@pytest.mark.integration
def test_two_devices_hold_one_engine(tiny_model, pairs_file, tmp_path):
    """Greedy responses of vLLM are those of one device; the manifest says how many there were."""
    config = experiment(tiny_model, pairs_file, "vllm", temperature=0.0, max_new_tokens=6)
    spec = spec_of(config, tmp_path)
    one = launch(on(spec, 1), tmp_path / "one")
    two = launch(on(spec, 2, tensor_parallel=2), tmp_path / "two")
    assert responses(two) == responses(one)
    assert two.spec["execution"]["tensor_parallel"] == 2


@pytest.mark.unit
def test_counts_of_responses():
    rows = [
        {"prompt_id": "a", "token_ids": [5, 2], "response": "a", "finish_reason": "stop"},
        {"prompt_id": "a", "token_ids": [2], "response": " ", "finish_reason": "stop"},
        {"prompt_id": "b", "token_ids": [5, 6, 7], "response": "abc", "finish_reason": "length"},
    ]
    found = summarize(GenerationPart(max_new_tokens=3), rows, [], 7.5)
    assert found.responses == 3
    assert found.model_dump(exclude={"warnings"}, exclude_none=True) == {
        "prompts": 2,
        "tokens": 6,
        "mean_tokens": 2.0,
        "truncated": 1,
        "empty": 1,
        "finish_reasons": {"stop": 2, "length": 1},
        "tokens_per_second": 7.5,
    }
    assert found.warnings == warnings(GenerationPart(max_new_tokens=3), 1, 3)


@pytest.mark.unit
def test_counts_of_verdicts():
    """Of four prompts that are trained on, b has both right and wrong responses; of two held-out ones, one is right."""
    table = [("a", "rr"), ("b", "wur"), ("c", "ww"), ("d", "u"), ("x", "r"), ("y", "u")]
    names = {"r": "right", "w": "wrong", "u": "undecided"}
    rows = [
        {
            "prompt_id": prompt,
            "split": "heldout" if prompt in "xy" else "train",
            "token_ids": [2],
            "response": "a",
            "finish_reason": "stop",
            "verdict": names[letter],
            "reason": "timeout",
        }
        for prompt, letters in table
        for letter in letters
    ]
    found = summarize(GenerationPart(), rows, rows, None)
    assert (found.right, found.wrong, found.undecided) == (3, 3, 2)
    assert (found.judged_prompts, found.mixed, found.heldout_right) == (4, 1, 0.5)
    assert found.warnings == [
        "verification: 3 of 10 synthetic responses are undecided, 3 of them for the reason 'timeout'"
    ]


@pytest.mark.unit
def test_more_than_a_tenth_truncated_is_warned_of():
    (line,) = warnings(GenerationPart(max_new_tokens=40), 97, 144)
    assert line.startswith("generation.max_new_tokens: 97 of 144 synthetic responses were cut at 40")
    assert warnings(GenerationPart(), 14, 144) == []
    assert len(warnings(GenerationPart(temperature=0.7), 15, 144)) == 2


PENALTIES = {
    "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 2,
    "num_beams": 3,
    "suppress_tokens": [60, 61, 62],
    "top_k": 1,
    "min_p": 0.5,
    "temperature": 0.1,
    "do_sample": True,
}


@pytest.mark.integration
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_config_has_no_say_in_sampling(pairs_file, tmp_path, temperature):
    """The same tokens with penalties, beams and cuts of the distribution in the model's folder as without."""
    found = {}
    for name, settings in (("plain", {}), ("penalties", PENALTIES)):
        build_model(tmp_path / name)
        file = tmp_path / name / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        config = experiment(tmp_path / name, pairs_file, "transformers", temperature=temperature)
        spec = spec_of(config, tmp_path / f"{name}-prepare")
        found[name] = responses(run_stage(spec, tmp_path / f"{name}-out", generate))
    assert found["penalties"] == found["plain"]


@pytest.mark.integration
@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_a_response_ends_where_the_template_ends_a_turn(pairs_file, tmp_path, backend):
    """The template ends a turn with 2, the model's settings say 0: both end a response, and nothing follows them."""
    folder = tmp_path / "model"
    build_model(folder, eos_token_id=0, hidden_size=128)
    byte_level(CHATML, eos="<|endoftext|>").save_pretrained(folder)
    config = experiment(folder, pairs_file, backend, max_new_tokens=100)
    spec = spec_of(config, tmp_path)
    assert spec.stop_token_ids == [2, 0]
    rows = responses(run_stage(spec, tmp_path / "out", generate))
    ended = {row["token_ids"][-1] for row in rows if row["finish_reason"] == "stop"}
    assert ended == {0, 2}
    for row in rows:
        *before, last = (token in (0, 2) for token in row["token_ids"])
        assert not any(before)
        assert last == (row["finish_reason"] == "stop")


@pytest.mark.integration
@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_an_update_far_below_the_resolution_of_bf16_is_sampled_from(pairs_file, tmp_path, backend, monkeypatch):
    """Weights move by 1e-4 of their size, bf16 resolves 4e-3: first-token log-probs move as they do in fp64."""
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    build_model(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    base.save_pretrained(folder)
    small_adapter(base, adapter, relative=1e-4)
    config = experiment(folder, pairs_file, backend)
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    spec = spec_of(config, tmp_path)
    policy = spec.policy.model_copy(update={"adapter": Artifact.of(adapter)})
    spec = spec.model_copy(update={"policy": policy})
    monkeypatch.setattr(loading, "device", lambda: torch.device("cpu"))
    dtype = engines.sampling_dtype(spec)
    if backend == "vllm":
        merged = engines._merge(spec, tmp_path / "merged")
        sampled = AutoModelForCausalLM.from_pretrained(merged, dtype=getattr(torch, dtype))
    else:
        sampled = loading.load_policy(spec.policy, dtype)
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    before = first_logprobs(exact)
    after = first_logprobs(PeftModel.from_pretrained(exact, adapter).to(torch.float64))
    moved = first_logprobs(sampled) - before
    assert (after - before).abs().max() > 1e-5
    assert (moved - (after - before)).norm() < 0.05 * (after - before).norm()


def small_adapter(model, folder, relative):
    """Saves an adapter whose update of each layer has `relative` times the norm of its weight."""
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model).float(), settings)
    for layer in adapted.modules():
        if hasattr(layer, "get_delta_weight"):
            size = layer.get_delta_weight("default").norm() / layer.base_layer.weight.norm()
            layer.lora_B["default"].weight.data *= relative / size
    adapted.save_pretrained(folder)


@torch.no_grad()
def first_logprobs(model):
    ids = torch.tensor([[1, 60, 70, 80, 2, 1, 65]])
    return model(input_ids=ids).logits[0, -1].double().log_softmax(-1)


@pytest.mark.unit
def test_sampling_that_is_not_from_the_opponent_is_said():
    assert warnings(GenerationPart(), 0, 1) == []
    (line,) = warnings(GenerationPart(temperature=0.7), 0, 1)
    assert "at temperature 0.7 and top_p 1 responses are not samples of the opponent p_t" in line
    assert len(warnings(GenerationPart(top_p=0.9), 0, 1)) == 1


@pytest.mark.integration
def test_a_model_that_changed_is_refused(tiny_model, pairs_file, tmp_path):
    spec = spec_of(experiment(tiny_model, pairs_file), tmp_path)
    wrong = spec.policy.model.model_copy(update={"digest": "0" * 64})
    spec = spec.model_copy(update={"policy": spec.policy.model_copy(update={"model": wrong})})
    with pytest.raises(ModelError, match="is missing or has changed"):
        run_stage(spec, tmp_path / "out", generate)


@pytest.mark.integration
def test_pairs_that_changed_are_refused(tiny_model, pairs_file, tmp_path):
    spec = spec_of(experiment(tiny_model, pairs_file), tmp_path)
    spec.pairs.path.write_bytes(spec.pairs.path.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"pairs.parquet is missing or has changed since `prepare`"):
        run_stage(spec, tmp_path / "out", generate)


@pytest.mark.integration
def test_the_adapter_answers_whatever_the_engine(tiny_model, pairs_file, tmp_path):
    """Greedy answers of base + adapter are the same by vLLM and transformers, and not those of the base."""
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), settings).save_pretrained(tmp_path / "adapter")
    adapter = Artifact.of(tmp_path / "adapter")
    answers = {}
    for backend, adapted in (("transformers", False), ("transformers", True), ("vllm", True)):
        spec = spec_of(experiment(tiny_model, pairs_file, backend, temperature=0.0, max_new_tokens=6), tmp_path)
        if adapted:
            policy = spec.policy.model_copy(update={"adapter": adapter})
            spec = spec.model_copy(update={"policy": policy})
        manifest = run_stage(spec, tmp_path / f"{backend}-{adapted}", generate)
        assert not any("merged" in name for name in manifest.files)
        answers[backend, adapted] = {row["prompt_id"]: row["token_ids"] for row in responses(manifest)}
    assert answers["vllm", True] == answers["transformers", True]
    assert answers["transformers", True] != answers["transformers", False]


@pytest.mark.unit
def test_prompts_do_not_share_a_batch_with_padding_that_the_model_sees(tiny_model, pairs_file, tmp_path):
    """RecurrentGemma's state takes masked padding in: a short prompt's answer changed beside a long one."""
    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=64,
        attention_window_size=64,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=0,
    )
    model = RecurrentGemmaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "model")
    loading.load_tokenizer(tiny_model).save_pretrained(tmp_path / "model")
    spec = spec_of(experiment(tiny_model, pairs_file, temperature=0.0), tmp_path)
    policy = Policy(model=Artifact.of(tmp_path / "model"))
    sample = engines.open_engine(spec.model_copy(update={"policy": policy}), 40, tmp_path)
    prompts = [list(range(10, 10 + length)) for length in (3, 30, 3, 17)]
    alone = [sample([prompt], [0])[0] for prompt in prompts]
    assert sample(prompts, [0] * len(prompts)) == alone
