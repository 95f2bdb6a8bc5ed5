"""Fixtures shared by all tests: a tiny real chat model, annotated pairs, and an environment without a network."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small are slower on several, and two tests run at once

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from iris_core.common import gpus

hypothesis.settings.register_profile(  # a busy machine fails no test, and each run has the same examples
    "same", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")

OF_THE_USER = (  # servers, ranks, and how a terminal shows text: the tests have their own
    *("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "RAY_ADDRESS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    *("COLUMNS", "LINES", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"),
)
for _name in OF_THE_USER:
    os.environ.pop(_name, None)

WORKERS = 2  # whole loops start processes of their own: more would need more memory than most machines have
TOGETHER = ("tests/deployments/", "tests/tasks/", "/test_ray")  # share servers; clusters would be too much at once
LONGEST = (  # minutes each: begun last, one would run alone in the end
    "tests/deployments/",
    "tests/test_faults.py",
    "tests/flows/test_kill_and_resume.py",
    "tests/flows/test_compare.py",
    "/test_ray",
    "tests/iris_core/execution/test_supervision.py",
    "tests/iris_core/execution/test_ranks.py",
    "tests/iris_core/training/test_ranks.py",
    "tests/iris_core/test_generate.py",
    "tests/iris_core/modeling/test_architectures.py",
    "tests/iris_core/test_train.py",
    "tests/iris_core/test_evaluate.py",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes run the suite; only this one where files are named, output is shown, or a GPU would be shared."""
    files_named = all(".py" in argument for argument in config.args)
    alone = files_named or config.option.capture == "no" or Path("/dev/nvidia0").exists()
    return 0 if alone else WORKERS


class WholeFiles(LoadScopeScheduling):
    """Gives a process a file, or the files of a part in `TOGETHER`, at a time: what its tests share is made once."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WholeFiles:
    config.option.loadscopereorder = False  # keeps the order of `pytest_collection_modifyitems`
    return WholeFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {unit: at for at, unit in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(unit_of(item.nodeid), len(order)))


def pytest_collection() -> None:
    gc.disable()  # as while a stage imports: see `iris_core.modeling.patches.imports`


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def unit_of(nodeid: str) -> str:
    """What is run by one process: the test's file, or the part of its path that is in `TOGETHER`."""
    file = nodeid.partition("::")[0]
    return next((part for part in TOGETHER if part in file), file)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test, its fixtures included, draws the same random numbers whatever its process has run before."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _ask_nvidia_smi_again() -> None:
    """Each test has the GPUs that its own nvidia-smi shows."""
    gpus.installed.cache_clear()


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What IRIS logs; libraries log at any time, when a connection is collected or an earlier test's server is gone."""

    def is_ours(record: logging.LogRecord) -> bool:
        return record.name.startswith(("iris_core", "tasks", "flows", "deployments"))

    caplog.handler.addFilter(is_ours)
    yield caplog
    caplog.handler.removeFilter(is_ours)


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(folder: Path) -> None:
    """Saves a byte-level BPE tokenizer with a chat template, trained on a few lines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["What is the sum of two and three?", "Answer: 5", "user assistant system"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def build_model(folder: Path, seed: int = 0, **config: object) -> None:
    """Saves a randomly initialised two-layer Llama with a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **config})).save_pretrained(folder)
    build_tokenizer(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama (hidden size 64, vocabulary 384) with a chat template."""
    folder = tmp_path_factory.mktemp("tiny-model")
    build_model(folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON Lines with 24 annotated pairs: sums, answered in one style."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    return path


def pairs() -> list[dict[str, str]]:
    """24 annotated pairs."""
    return [
        {"prompt": f"What is {a} + {b}?", "response": f"It is {a + b}.\nAnswer: {a + b}"}
        for a in range(6)
        for b in range(4)
    ]
