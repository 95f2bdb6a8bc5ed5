"""What a person sees in the terminal: stages as they end, the table, the champion, and every warning."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deployments.terminal import Display, show_beside, show_places, show_result, summary_line
from iris_core.common.progress import Advance
from iris_core.pipeline.members import compare_spec
from iris_core.reporting.summary import Sample, Warned
from iris_core.reporting.trajectories import trajectories
from iris_core.store import Manifest, Store
from tasks.stage import Finished
from tests.iris_core.small_experiment import SmallExperiment

pytestmark = pytest.mark.unit
WARNING = "12 of 18 responses are cut at [bold]generation.max_new_tokens[/]: raise it"


def console() -> Console:
    return Console(file=StringIO(), width=80)


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, StringIO)
    return shown.file.getvalue()


@pytest.fixture
def small(tmp_path: Path) -> SmallExperiment:
    made = SmallExperiment(tmp_path, [0.3, 0.4])
    made.warnings = {"generate": [WARNING]}
    made.initial()
    made.iterations()
    return made


def finished(small: SmallExperiment, place: str) -> Finished:
    manifest = small.store.manifest(place)
    assert isinstance(manifest, Manifest)
    return Finished.of(manifest)


@pytest.mark.parametrize("reused", [False, True])
def test_a_warning_comes_with_its_stage_once(small: SmallExperiment, reused: bool) -> None:
    shown = console()
    done = finished(small, "iteration-0/generate").model_copy(update={"reused": reused})
    Display(shown).ended(small.store, "iteration-0/generate", done)
    name, first, second = text_of(shown).splitlines()
    assert name == small.store.home.name
    assert first.startswith("✓ iteration 0 · generate")
    assert second == f"  ! {WARNING}"


def test_what_a_stage_waits_for_is_said() -> None:
    shown = console()
    Display(shown).noticed("initial/register", "MLflow [at] 5000 is away")
    assert text_of(shown) == "  … initial · register  MLflow [at] 5000 is away\n"


def test_all_warnings_at_the_end_and_none_without_any(small: SmallExperiment, tmp_path: Path) -> None:
    shown = console()
    show_result(shown, small.store)
    lines = text_of(shown).splitlines()
    at = lines.index("warnings (2)")
    assert lines[at + 1 : at + 3] == [f"! iteration {t} · generate: {WARNING}" for t in (0, 1)]
    quiet, other = console(), SmallExperiment(tmp_path / "other", [0.3])
    other.initial()
    other.iterations()
    show_result(quiet, other.store)
    assert "warning" not in text_of(quiet)
    assert "!" not in text_of(quiet)


def test_what_models_and_users_write_is_text(small: SmallExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "\x1b[31m[red]:smile:\x1b]8;;http://e\x07\r\u202e\\"
    written = "\\x1b[31m[red]:smile:\\x1b]8;;http://e\\x07\\r\\u202e\\"
    found = [Sample(prompt=hostile, annotated=hostile, before=hostile, after=hostile)]
    monkeypatch.setattr("deployments.terminal.samples", lambda store: found)
    monkeypatch.setattr("deployments.terminal.warnings", lambda store: [Warned("prepare", hostile)])
    shown = Console(file=StringIO(), width=200)
    show_result(shown, small.store)
    display = Display(shown)
    display.echoed = -1000.0
    display.progressed("a/b", Advance(stage="t: " + hostile, done=1, total=2, name=hostile))
    assert text_of(shown).count(written) == 4 + 1 + 2
    assert "\x1b" not in text_of(shown)


def test_what_a_generation_and_a_version_tell(small: SmallExperiment) -> None:
    done = finished(small, "iteration-0/generate")
    assert summary_line(done) == "8 answers, 10 tokens each, 12% truncated"
    ids = {"run_id": "a", "parent_run_id": "b"}
    for version, champion, line in (
        (2, True, "model version 2, champion"),
        (3, False, "model version 3"),
        (None, False, ""),
    ):
        metrics = {**ids, "version": version, "champion": champion}
        assert summary_line(done.model_copy(update={"stage": "register", "metrics": metrics})) == line


def test_the_table_is_80_columns_wide_even_with_other_settings(small: SmallExperiment) -> None:
    again = SmallExperiment(small.root, [0.3, 0.4], evaluation={"limit": 3, "benchmarks": ["mmlu"]})
    again.initial()
    shown = console()
    show_result(shown, small.store)
    table = text_of(shown).split("warnings")[0].split("\n\n")[0]
    assert "other" in table
    assert "miniature" in table
    assert max(map(len, table.splitlines())) <= 80


def test_what_to_type_is_one_command_wherever_the_store_is() -> None:
    console = Console(file=StringIO(), width=80)
    show_places(console, Store(Path("/my store"), "e"), "iris demo")
    assert "type: iris up --store '/my store'\n" in console.file.getvalue()


def test_another_mlflow_is_where_the_recipe_says() -> None:
    shown = console()
    show_places(shown, Store(Path("/s"), "e"), "iris demo", "http://me:secret@mlflow:5000")
    (line,) = (line for line in text_of(shown).splitlines() if line.startswith("MLflow"))
    assert line == "MLflow   http://***@mlflow:5000  runs, metrics, model versions"


def test_verdicts_and_the_name_of_the_verifier(tmp_path: Path) -> None:
    judged = SmallExperiment(tmp_path, [0.3], verification={"kind": "math"})
    judged.initial()
    judged.iterations()
    assert summary_line(finished(judged, "iteration-0/generate")) == (
        "8 answers, 10 tokens each, 12% truncated; 62% right, 31% wrong, 6% undecided, 75% of prompts with both"
    )
    assert summary_line(finished(judged, "iteration-0/evaluate")) == "average 30.0 %, accuracy (math) 0.30"
    shown = console()
    show_result(shown, judged.store)
    header = text_of(shown).splitlines()[2:6]
    assert "accur." in header[0] + header[1]
    assert max(map(len, text_of(shown).splitlines()[:9])) <= 80


def test_loops_are_named_once_each_and_the_failed_one_has_its_log(small: SmallExperiment) -> None:
    shown, other = console(), Store(small.store.root, "other")
    display = Display(shown)
    done = finished(small, "iteration-0/generate")
    for store in (small.store, small.store, other):
        display.ended(store, "iteration-0/generate", done)
    lines = text_of(shown).splitlines()
    names = [line for line in lines if line in (small.store.home.name, "other")]
    assert names == [small.store.home.name, "other"]
    result = lines.index(f"{small.store.home.name}: the model after each iteration")  # before the next loop begins
    assert lines.index(small.store.home.name) < result < lines.index("other")
    display.ended(other, "iteration-0/train", None)
    assert display.failed == other.home / "logs" / "iteration-0-train.log"


def test_a_damaged_answer_of_one_loop_does_not_stop_the_next(tmp_path: Path) -> None:
    small, shown = SmallExperiment(tmp_path, [0.3]), console()
    small.initial()
    small.iterations()
    display = Display(shown)
    done = finished(small, "iteration-0/generate")
    display.ended(small.store, "iteration-0/generate", done)
    evaluated = small.store.manifest("iteration-0/evaluate")
    assert evaluated
    evaluated.artifact("heldout").path.write_bytes(b"damaged")
    for place in ("iteration-0/generate", "iteration-0/train"):
        display.ended(Store(small.store.root, "other"), place, done)
    lines = text_of(shown).splitlines()
    (said,) = (line for line in lines if "has changed since it was written" in line)
    assert said.startswith("! ")
    assert lines.index(said) < lines.index("other")
    assert len([line for line in lines if line.startswith("✓")]) == 3


def test_no_column_for_benchmarks_that_nobody_asked_for(tmp_path: Path) -> None:
    for folder, average in (("without", None), ("with", 0.3)):
        small = SmallExperiment(tmp_path / folder, [average], label=None)
        small.iterations()
        shown = console()
        show_result(shown, small.store)
        assert ("average" in text_of(shown)) == (average is not None)


def test_the_baseline_stands_beside(tmp_path: Path) -> None:
    """4 of 8 answers more are right; its interval is tested with the comparison."""
    members = []
    for name, right in (("sft", 0.25), ("iris", 0.75)):
        member = SmallExperiment(
            tmp_path / name,
            [0.3],
            exact=[0.125, right],
            logprobs=[-1.7, -1.2],
            objective={"name": name},
            verification={"kind": "math"},
        )
        member.initial()
        member.iterations()
        members.append(member.experiment)
    found = trajectories(compare_spec(members[0], members).members)
    shown = console()
    show_beside(shown, found, "sft")
    lines = [" ".join(re.sub(r" \[[^]]*\]", "", line).split()) for line in text_of(shown).splitlines()]
    assert lines[1] == "accuracy (math) on held-out prompts after each iteration, and steps of training"
    assert lines[3] == "iter. sft iris verified"
    assert lines[5:8] == ["initial 0.12 0.12", "0 0.25 0.75", "steps 6 6"]
    assert "iris verified − sft: +0.50 [+0.04, +0.76], paired by prompt" in text_of(shown)

    shown = console()  # the initial model was not evaluated, and there are many models
    values = [found[0].exact_match[1]] * 12
    many = [row.model_copy(update={"exact_match": values, "logprob": [*row.logprob[:1], *values]}) for row in found]
    show_beside(shown, many, "sft")
    assert re.findall(r"^ +(\w+) ", text_of(shown), re.MULTILINE) == [*map(str, range(12)), "steps"]
    assert max(map(len, text_of(shown).splitlines())) <= 80


def test_what_was_not_checked_is_compared_by_log_prob(tmp_path: Path) -> None:
    members = []
    for name, logprob in (("sft", -1.2), ("spin", -1.4)):
        member = SmallExperiment(tmp_path / name, [0.3], logprobs=[-1.7, logprob], objective={"name": name})
        member.iterations()
        members.append(member.experiment)
    found = trajectories(compare_spec(members[0], members).members)
    shown = console()
    show_beside(shown, [row.model_copy(update={"exact_match": []}) for row in found], "sft")
    assert "log-prob, nats per token on held-out prompts" in text_of(shown)
    assert "spin − sft: -0.200 [" in text_of(shown)


def test_the_page_of_the_comparison_is_among_the_places() -> None:
    shown = console()
    show_places(shown, Store(Path("/s"), "e"), "iris demo", compared=True)
    assert text_of(shown).splitlines()[:2] == [
        "report   /s/e/report.html",
        "compared /s/e/comparison/comparison.html",
    ]
