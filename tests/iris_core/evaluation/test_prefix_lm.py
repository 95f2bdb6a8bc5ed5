"""The transformers model with shared prefixes gives the numbers of the harness's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from iris_core.evaluation import prefix_lm
from iris_core.evaluation.prefix_tree import Request

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(params=["full", "adapter"])
def policy(request: pytest.FixtureRequest, model: Any, tiny_model: Path) -> Any:
    if request.param == "full":
        return model
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa")
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()


def both(policy: Any, tokenizer: Any, max_length: int | None = None) -> tuple[Any, Any]:
    """Our model of the harness and the harness's own."""
    from lm_eval.models.huggingface import HFLM

    from iris_core.evaluation.prefix_lm import PrefixLM

    ours = PrefixLM(policy, tokenizer, batch_size=8, max_length=max_length)
    return ours, HFLM(
        pretrained=policy,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=3,
        max_length=max_length,
    )


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, item, index) for index, item in enumerate(arguments)]


@pytest.mark.parametrize("max_length", [None, 48])
def test_log_likelihoods_are_the_harness_s(policy: Any, tokenizer: Any, max_length: int | None) -> None:
    contexts = ["Q: What is it?\nA: a cat\n\n" * shots + f"Q: What is {x}?\nA:" for shots in (0, 1, 3) for x in "ab"]
    choices = (" A", " B", " (A)", " (B)", " a cat and a dog", " What")
    requests = instances("loglikelihood", [(context, choice) for context in contexts for choice in choices])
    ours, theirs = both(policy, tokenizer, max_length)
    for (logprob, greedy), (expected, was_greedy) in zip(
        ours.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True), strict=True
    ):
        assert logprob == pytest.approx(expected, rel=1e-4)
        assert greedy == was_greedy


def test_generation_from_a_shared_prefix_is_the_harness_s(policy: Any, tokenizer: Any) -> None:
    shots = "Question: What is the sum of two and three?\nAnswer: 5\n\n"
    prompts = [
        shots + f"Question: {question}\nAnswer:" for question in ("What?", "What is the sum of a and b?", "Why so?")
    ]
    arguments = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    requests = instances("generate_until", [(prompt, dict(arguments)) for prompt in prompts])
    ours, theirs = both(policy, tokenizer)
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)


def test_a_sliding_window_shorter_than_the_prompts_is_left_to_the_harness(
    tokenizer: Any, model: Any, monkeypatch: Any
) -> None:
    ours, _ = both(model, tokenizer)
    items = [Request(list(range(30)), [1])]
    assert ours._can_share(items)
    monkeypatch.setattr(model.config, "sliding_window", 16, raising=False)
    assert not ours._can_share(items)


def test_eager_attention_adds_its_mask(tiny_model: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").eval()
    ours, theirs = both(eager, tokenizer)
    requests = instances("loglikelihood", [("What is the sum?", x) for x in (" A", " a b", " B")])
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    for (found, _), (logprob, _) in zip(ours.loglikelihood(requests), expected, strict=True):
        assert found == pytest.approx(logprob, rel=1e-4)


WORDS = "Question: What is the sum of two and three? Answer: five. " * 3


def windowed(kind: str) -> Any:
    """A random model whose window is shorter than the prompts below, or that has layers of other kinds."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "sliding_window": 24,
        "initializer_range": 0.3,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "gemma3_text":
        settings["layer_types"] = ["sliding_attention", "full_attention"]
    if kind == "recurrent_gemma":
        settings |= {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 24}
    if kind == "gpt_neo":
        settings |= {"attention_types": [[["global", "local"], 1]], "window_size": 24}
    if kind == "lfm2":
        settings["layer_types"] = ["conv", "full_attention"]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**settings)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text", "gpt_neo", "mamba", "lfm2"])
def test_models_with_windows_or_states_get_the_harness_s_numbers(tokenizer: Any, kind: str) -> None:
    ours, theirs = both(windowed(kind), tokenizer)
    prompts = [WORDS + question for question in ("Why?", "What is the sum of a and b and c?", "So?")]
    scored = instances("loglikelihood", [(p, choice) for p in prompts for choice in (" A", " a b")])
    for (logprob, greedy), (expected, was_greedy) in zip(
        ours.loglikelihood(scored), theirs.loglikelihood(scored, disable_tqdm=True), strict=True
    ):
        assert logprob == pytest.approx(expected, rel=1e-4)
        assert greedy == was_greedy
    arguments = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = instances("generate_until", [(prompt, dict(arguments)) for prompt in prompts])
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_padding_that_a_model_sees_does_not_change_what_it_generates(tokenizer: Any) -> None:
    """RecurrentGemma's state takes masked padding in: the harness's answers change with the prompts beside them."""
    model = windowed("recurrent_gemma")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours, theirs = both(model, tokenizer)
    arguments = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = instances("generate_until", [(p, dict(arguments)) for p in (WORDS, "Why?", "So what?")])
    alone = [answer for one in asked for answer in ours.generate_until([one])]
    assert theirs.generate_until(asked, disable_tqdm=True) != alone
    assert ours.generate_until(asked) == alone


@pytest.mark.parametrize(("tokens", "shared"), [(24, 16), (25, 0)])
def test_a_prefix_is_shared_while_a_window_holds_everything(
    tokenizer: Any, monkeypatch: Any, tokens: int, shared: int
) -> None:
    """Prompts of 18 and 20 tokens: the padding of the first counts towards the window of 24, as do the new tokens."""
    ours, _ = both(windowed("mistral"), tokenizer)
    found = []
    prefill = prefix_lm.prefill
    monkeypatch.setattr(prefix_lm, "prefill", lambda *a: found.append(a[-1]) or prefill(*a))
    context = torch.tensor([[0, 0, *range(30, 46), 50, 51], [*range(30, 46), 60, 61, 62, 63]])
    ours._model_generate(context, tokens, [], attention_mask=(context > 0).long(), do_sample=False)
    assert found == [shared]
