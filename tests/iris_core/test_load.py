"""`load_model` on a tiny random Llama with a real LoRA adapter, registered in a real MLflow."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from iris_core import tracking
from iris_core.common.errors import ConfigError, ModelError, ServiceError
from iris_core.load import load_model, version_tags
from iris_core.register import register
from iris_core.store import Outcome, run_stage
from tests.iris_core.small_experiment import SmallExperiment

WORDS = ["<pad>", "</s>", "user", "assistant", "one", "two", "three", "four"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def save_tiny_llama(folder) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="one"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)


class TinyLlama(SmallExperiment):
    """The small experiment with a model that answers, trained by nudging its adapter."""

    def __init__(self, root, **settings):
        (root / "model").mkdir()
        super().__init__(root, [0.3], **settings)

    def prepare(self, spec, out) -> Outcome:
        for file in (self.root / "model").iterdir():
            file.unlink()
        save_tiny_llama(self.root / "model")
        return super().prepare(spec, out)

    def train(self, t: int):
        def work(spec, out) -> Outcome:
            outcome = super(TinyLlama, self).train(t)(spec, out)
            base = LlamaForCausalLM.from_pretrained(spec.policy.model.path)
            if spec.training.method == "full":
                with torch.no_grad():
                    base.lm_head.weight.mul_(-1)
                base.save_pretrained(out / "model")
                for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                    shutil.copy(spec.policy.model.path / name, out / "model")
                outputs = {"model": out / "model", "history": out / "history.jsonl"}
                return outcome.model_copy(update={"outputs": outputs})
            model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
            torch.manual_seed(1)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_()
            for config in model.peft_config.values():
                config.base_model_name_or_path = f"sha256:{spec.policy.model.digest}"
            model.save_pretrained(out / "adapter")
            (out / "adapter" / "README.md").unlink()
            return outcome

        return work


def registered(root, **settings) -> TinyLlama:
    small = TinyLlama(root, **settings)
    [spec] = small.iterations()
    run_stage(spec, small.store.folder(spec), register)
    return small


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> TinyLlama:
    return registered(tmp_path_factory.mktemp("load"))


@pytest.mark.parametrize("name", ["small@champion", "small@latest", "small/1"])
def test_the_loaded_model_is_the_trained_one(small, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", small.experiment.tracking_uri)
    model, tokenizer = load_model(f"models:/{name}")
    assert isinstance(model, PeftModel)
    assert not model.training
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "one two"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    policy = small.policy(0)
    assert policy.adapter
    base = LlamaForCausalLM.from_pretrained(policy.model.path)
    untrained = base(ids).logits
    trained = PeftModel.from_pretrained(base, policy.adapter.path)(ids).logits
    found = model(ids).logits
    torch.testing.assert_close(found, trained)
    assert not torch.allclose(found, untrained, atol=1e-3)
    assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]


def test_another_base_is_refused(small, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(small.root / "model", other)
    assert load_model("models:/small@champion", small.experiment.tracking_uri, base=other)
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    )
    with pytest.raises(ModelError, match="is not the base model this version was trained on"):
        load_model("models:/small@champion", small.experiment.tracking_uri, base=other)
    with pytest.raises(ModelError, match="is not at"):
        load_model("models:/small@champion", small.experiment.tracking_uri, base=tmp_path / "gone")


def test_full_weights_are_loaded_from_where_they_are(tmp_path):
    small = registered(tmp_path, training={"method": "full"})
    model, _ = load_model("models:/small@champion", small.experiment.tracking_uri)
    trained = small.store.manifest("iteration-0/train").artifact("model")
    assert torch.equal(model.lm_head.weight, LlamaForCausalLM.from_pretrained(trained.path).lm_head.weight)
    assert not isinstance(model, PeftModel)


@pytest.mark.parametrize("scored", [True, False])
def test_the_initial_model_is_loaded_where_no_iteration_beats_it(tmp_path, scored):
    """By held-out exact match where it was evaluated, else by log-probs, those of the first opponent."""
    data = {"path": str(tmp_path / "pairs.jsonl")}
    settings = {} if scored else {"data": data, "evaluation": {"initial": False}}
    small = TinyLlama(tmp_path, exact=[0.5, 0.25], logprobs=[-1.5, -1.6], **settings)
    for spec in [small.initial(), *small.iterations()]:
        run_stage(spec, small.store.folder(spec), register)
        model, _ = load_model("models:/small@champion", small.experiment.tracking_uri)
        assert not isinstance(model, PeftModel)
        assert model.dtype == torch.float32
        given = LlamaForCausalLM.from_pretrained(small.root / "model")
        assert torch.equal(model.lm_head.weight, given.lm_head.weight)
    latest, _ = load_model("models:/small@latest", small.experiment.tracking_uri)
    assert isinstance(latest, PeftModel)


def change(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[-50] ^= 1
    copy.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change, "the adapter in MLflow has changed since it was registered"),
        (Path.unlink, "MLflow has lost adapter_model.safetensors of the adapter"),
        (lambda copy: shutil.rmtree(copy.parent), "MLflow has lost .* of the adapter"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused_and_can_be_registered_again(tmp_path, damage, said):
    small = registered(tmp_path)
    uri = small.experiment.tracking_uri
    [copy] = (tmp_path / "store" / "mlflow-artifacts").rglob("adapter_model.safetensors")
    damage(copy)
    with pytest.raises(ModelError, match=said) as caught:
        load_model("models:/small@champion", uri)
    [run] = re.findall("delete the run (\\w+) in MLflow and run the recipe again", str(caught.value))
    tracking.connect(uri).delete_run(run)
    [spec] = small.iterations()
    run_stage(spec, small.store.folder(spec), register)
    assert load_model("models:/small@champion", uri)
    assert version_tags("models:/small@latest", uri)["run"] != run


@pytest.mark.parametrize(
    "uri",
    ["models:/small@best", "models:/nosuch@champion", "models:/small/7", "small", "models:/small"],
)
def test_an_unknown_version_names_those_there_are(small, uri):
    with pytest.raises(ConfigError, match="models there: small"):
        load_model(uri, small.experiment.tracking_uri)


def test_no_uri_and_no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        load_model("models:/small@champion")
    with pytest.raises(ServiceError, match="no MLflow server answers at http://127.0.0.1:9"):
        load_model("models:/small@champion", "http://127.0.0.1:9")


def test_a_database_that_is_not_there_is_named_and_not_made(tmp_path):
    with pytest.raises(ConfigError, match=f"tracking_uri: there is no database {tmp_path}/typo/mlflow.db: correct"):
        version_tags("models:/small@champion", f"sqlite:///{tmp_path}/typo/mlflow.db")
    assert not list(tmp_path.iterdir())
