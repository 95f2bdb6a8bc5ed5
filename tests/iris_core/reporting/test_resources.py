"""What `iris plan` finds: which experiment fits which machine, and what would make it fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import MambaConfig, MistralConfig, T5Config

from deployments.demo import RECIPES
from iris_core.common.errors import ConfigError, ModelError
from iris_core.config import Experiment
from iris_core.config.recipe import load_recipe
from iris_core.modeling.sizes import recipe_sizes, trained_sizes
from iris_core.objectives.losses import OBJECTIVES
from iris_core.pipeline.sizes import Sizes
from iris_core.reporting.hours import MEASURED_SHARE
from iris_core.reporting.machine import Machine, parse_machine
from iris_core.reporting.resources import Resources, resources, rows
from iris_core.training.memory import Devices

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def zephyr() -> Sizes:
    """Of Mistral-7B, as Zephyr is: 7.24 B parameters."""
    config = MistralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        tie_word_embeddings=False,
    )
    return trained_sizes(config, None)


def recipe(**settings: object) -> Experiment:
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    return load_recipe(RECIPES / "zephyr-7b-ultrachat-50k.yaml", changes)


def plan(zephyr: Sizes, machine: str, **settings: object) -> Resources:
    return resources(recipe(**settings), zephyr, parse_machine(machine))


def test_full_training_of_zephyr_fits_eight_gpus_that_share_it(zephyr: Sizes) -> None:
    """12 bytes a parameter are 86.9 GB, 10.9 GB on each of eight; a machine reads every weight once, in fp32."""
    needs = plan(zephyr, "8xH100-80GB")
    needs.check()
    assert needs.sharding == "full"
    assert needs.memory.held["weights"] == 4 * 7_241_732_096 / 8
    assert needs.host == 4 * 7_241_732_096
    assert needs.copied == 8 * 7_241_732_096  # weights and RMSprop's states
    assert needs.traffic == 7 / 8 * (2 + 2 + 4) * 7_241_732_096
    assert needs.fitting == {}


def test_without_sharding_it_does_not_fit(zephyr: Sizes) -> None:
    needs = plan(zephyr, "8xH100-80GB", training__sharding="none")
    assert needs.memory.held["weights"] == 4 * 7_241_732_096
    assert needs.host == 8 * 4 * 7_241_732_096
    assert needs.copied == 8 * 7_241_732_096  # of rank 0
    assert needs.traffic == 2 * 7 / 8 * 4 * 7_241_732_096
    with pytest.raises(
        ConfigError, match=r"8 × H100 .* 90% may be used: to make it fit, set training.sharding: full \(\d+%\)"
    ):
        needs.check()


def test_machines_that_share_among_their_own(zephyr: Sizes) -> None:
    """Of two machines each holds the model once: what a GPU holds and sends is as on one machine."""
    one, two = plan(zephyr, "8xH100-80GB"), plan(zephyr, "2x8xH100-80GB")
    assert two.sharding == "hybrid"
    assert two.memory == one.memory
    assert two.copied == one.copied
    assert two.traffic == one.traffic
    assert not one.copies
    assert plan(zephyr, "2x8xH100-80GB", training__sharding="full").memory.peak < one.memory.peak


def test_machines_sum_what_each_of_them_has_summed(zephyr: Sizes) -> None:
    """fp32 gradients, an eighth on each GPU: of 2 machines one sends half of it twice, of 4 three quarters twice."""
    eighth = 4 * 7_241_732_096 / 8
    needs = plan(zephyr, "2x8xH100-80GB")
    assert needs.copies == eighth
    assert plan(zephyr, "4x8xH100-80GB").copies == 1.5 * eighth
    assert not plan(zephyr, "2x8xH100-80GB", training__sharding="full").copies
    found = dict(rows(needs))
    assert found["each GPU sends for each row of a step, inside its machine"] == "50.7 GB"
    assert found["each GPU sends for each row of a step, to other machines"] == "3.6 GB"


def test_what_would_fit_is_named(zephyr: Sizes) -> None:
    """Eight times 40 GB hold the states; the activations of all layers they do not, but those of one."""
    needs = plan(zephyr, "8xA100-40GB", training__gradient_checkpointing=False)
    with pytest.raises(
        ConfigError, match=r"8 × A100 with 40 GB, \d+% of it.*set training.gradient_checkpointing: true"
    ):
        needs.check()
    plan(zephyr, "8xA100-40GB", training__gradient_checkpointing=True).check()
    few = plan(zephyr, "2xA100-40GB")
    with pytest.raises(ConfigError, match=r"set training.method: lora \(\d+%\), or take 4 × A100 with 40 GB \(\d+%\)$"):
        few.check()
    plan(zephyr, "4xA100-40GB").check()


def test_what_nothing_makes_fit_says_so(zephyr: Sizes) -> None:
    with pytest.raises(ConfigError, match="no setting of training makes it fit: take larger GPUs or another model"):
        plan(zephyr, "T4-16GB").check()


def test_lora_shares_nothing_where_it_fits(zephyr: Sizes) -> None:
    needs = plan(zephyr, "8xH100-80GB", training__method="lora")
    needs.check()
    assert needs.sharding == "none"
    assert needs.share is not None
    assert needs.share < 0.4  # bf16 weights alone are 14.5 GB of 80


def test_a_row_is_as_long_as_the_longest_pair(zephyr: Sizes) -> None:
    """A pair of 16,384 + 1,024 + 256 tokens gets a row of its own, in whatever budget: half of it saves nothing."""
    lora = {"training__method": "lora", "training__gradient_checkpointing": False}
    long, wide = (
        plan(zephyr, "GPU-40GB", **lora, **changed)
        for changed in ({"data__max_prompt_tokens": 16384}, {"training__tokens_per_batch": 17664})
    )
    assert long.memory == wide.memory
    assert next(iter(long.fitting)) == "set training.gradient_checkpointing: true"
    assert len(wide.fitting) == len(long.fitting) + 1


def test_processes_on_cpus_are_shown_and_never_refused(zephyr: Sizes) -> None:
    needs = resources(recipe(), zephyr, Machine("CPU", Devices(1, 2, None)), "float32")
    assert not needs.copied
    needs.check()
    assert needs.sharding == "none"
    found = dict(rows(needs))
    assert found["each process: weights"] == "29.0 GB"
    assert needs.needed == pytest.approx(1.11 * needs.memory.peak)
    assert found["GPU-hours of train, all iterations"].startswith("not estimated: the bf16 peak of CPU")


def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path: Path) -> None:
    experiment = load_recipe(RECIPES / "demo.yaml", {"model.path": str(tmp_path), "training.method": "full"})
    MambaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    small = resources(experiment, recipe_sizes(experiment), parse_machine("GPU-1GB"))
    assert small.sizes.adapter == 0  # PEFT has none for it
    with pytest.raises(ConfigError, match=r"on each GPU of 1 × GPU with 1 GB"):
        small.check()
    assert not [setting for setting in small.fitting if "lora" in setting]
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is no causal language model .*model_type: t5"):
        recipe_sizes(experiment)


def test_every_part_is_a_row(zephyr: Sizes) -> None:
    found = dict(rows(plan(zephyr, "8xH100-80GB")))
    assert found["each GPU: weights"] == found["each GPU: gradients"] == "3.6 GB"
    assert found["each GPU: weights in the sampling engine"] == "14.5 GB"
    assert found["each GPU sends for each row of a step"] == "50.7 GB"
    assert found["training.sharding"] == "full"
    assert "each GPU: adapter" not in found
    two = dict(rows(plan(zephyr, "8xH100-80GB", execution__gpus_per_node=8, execution__tensor_parallel=2)))
    assert two["each GPU: weights in the sampling engine"] == "7.2 GB"


def test_gpu_hours_on_paper(zephyr: Sizes) -> None:
    """LoRA: 4 FLOP a weight and token in a step, 2 more to recompute, and 2 once for the opponent.

    2 iterations of 1,000 pairs, the second with two synthetic responses: 3,000 pairs of 1,024 + 1,024 + 256 tokens.
    """
    small = {"iterations": 2, "data__max_pairs": 1000, "training__method": "lora"}
    needs = plan(zephyr, "8xH100-80GB", **small)
    flop = zephyr.matrices * 3000 * 2304 * (2 * (4 + 2) + 2)
    assert needs.hours["train"] == pytest.approx(flop / 434e12 / 3600)
    slower = plan(zephyr, "8xA100-80GB", **small).hours["train"]
    assert slower == pytest.approx(flop / 434e12 / 3600 * 989 / 312)
    known = resources(recipe(**small), zephyr, parse_machine("8xH100-80GB"), pairs=500)
    assert known.hours["train"] == pytest.approx(flop / 434e12 / 3600 / 2)


def test_samples_count_where_verdicts_are_learned_from(zephyr: Sizes) -> None:
    """The annotated response and 4 samples: 1,024 + 1,024 + 4 · 256 tokens of each pair, as often as by one sample.

    Of 2 iterations there are 2 · (1,000 · 4 + 512) responses of 256 tokens, 8 bytes each.
    """
    small = {"iterations": 2, "data__max_pairs": 1000, "training__method": "lora", "data__mix_previous": False}
    judged = {**small, "verification__kind": "math", "generation__samples": 4}
    needs = plan(zephyr, "8xH100-80GB", **judged)
    flop = zephyr.matrices * 2000 * 3072 * (2 * (4 + 2) + 2)
    assert needs.hours["train"] == pytest.approx(flop / 434e12 / 3600)
    assert needs.responses == 2 * 4512 * 256 * 8
    assert dict(rows(needs))["disk: responses"] == "at most 18.5 MB"
    plain = plan(zephyr, "8xH100-80GB", **judged, objective__verified=False)
    assert plain.hours["train"] == plan(zephyr, "8xH100-80GB", **small).hours["train"]
    assert plan(zephyr, "8xH100-80GB", **judged, objective__name="rft").hours["train"] == needs.hours["train"]
    prompts = {"data__prompts_path": "p.jsonl", "data__reference_column": "gold"}
    unread = plan(zephyr, "8xH100-80GB", **judged, **prompts)
    assert unread.hours["train"] == "not estimated: data.prompts_path is set, and the data is not read yet"
    assert unread.responses is None
    answered = resources(recipe(**judged, **prompts), zephyr, parse_machine("8xH100-80GB"), prompts=9000)
    assert answered.responses == 2 * (10_000 * 4 + 512) * 256 * 8
    baseline = recipe(**judged, **prompts, objective__verified=False)
    ignored = resources(baseline, zephyr, parse_machine("8xH100-80GB"), prompts=9000)
    assert ignored.hours["train"] == plain.hours["train"]
    assert ignored.responses == plain.responses == 2 * (1000 + 512) * 256 * 8


def test_a_store_in_s3_holds_one_more_checkpoint(zephyr: Sizes) -> None:
    """The one that is being uploaded: weights and one state of RMSProp, 4 bytes each."""
    local, remote = (plan(zephyr, "8xH100-80GB", store=store).disk for store in ("./store", "s3://bucket/prefix"))
    assert remote - local == zephyr.parameters * 4 * 2


def test_the_measured_rate_is_that_of_the_benchmark() -> None:
    """In the text of the GPU's row: the slowest of three steps, and the data sheet's peak."""
    text = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())["text"]
    assert "434 to 443 TFLOP/s" in text
    assert "of the data sheet's 989" in text
    assert pytest.approx(434 / 989) == MEASURED_SHARE


def test_packed_rows_are_assumed_where_the_recipe_leaves_it_open(zephyr: Sizes) -> None:
    assumed = "training.packing: auto counts as packed rows"
    assert plan(zephyr, "8xH100-80GB").assumptions[0].startswith(assumed)
    separate = plan(zephyr, "8xH100-80GB", training__packing="separate")
    assert not any(line.startswith(assumed) for line in separate.assumptions)
    assert separate.sharding == "none"
    assert not any("sharding" in setting or "take" in setting for setting in separate.fitting)


def test_what_was_not_measured_is_not_estimated(zephyr: Sizes) -> None:
    needs = plan(zephyr, "8xH100-80GB", data__max_pairs=None)
    assert needs.hours["train"] == "not estimated: data.max_pairs is not set, and the data is not read yet"
    assert needs.hours["generate"] == "not estimated: no sampling rate on a GPU was measured"
    tiny = zephyr.model_copy(update={"parameters": 135_000_000})
    assert "this one has 0.14 B" in str(resources(recipe(), tiny, parse_machine("H200-141GB")).hours["train"])
    assert "the bf16 peak of T4" in str(plan(zephyr, "T4-16GB").hours["train"])
    routed = zephyr.model_copy(update={"experts": 2})
    hours = resources(recipe(), routed, parse_machine("H200-141GB")).hours
    assert hours["train"] == "not estimated: no model with experts was measured"


def test_responses_of_a_step() -> None:
    """The plan takes them from a table that needs no torch; the losses take it from there, too."""
    assert {name: objective.responses for name, objective in OBJECTIVES.items()} == {
        **dict.fromkeys(("iris", "spin", "hinge", "space", "spif", "rft"), 2),
        "tspin": 3,
        "sft": 1,
    }
