"""The report: complete, self-contained, the same for the same store, and useful before the experiment is over."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import pytest

from iris_core.common.errors import StoreError
from iris_core.pipeline.metrics import EvaluateMetrics
from iris_core.reporting import figures
from iris_core.reporting.findings import sentence, tiles
from iris_core.reporting.page import write_report
from iris_core.reporting.summary import Row
from tests.iris_core.damage import damage
from tests.iris_core.small_experiment import STEPS, SmallExperiment, around

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects ids, links and open tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.plots: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "xlink:href", "data", "action") if name in values]
        if values.get("role") == "img":
            self.plots.append(values["aria-label"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    small = SmallExperiment(tmp_path_factory.mktemp("report"), [0.3, 0.4, 0.5])
    small.initial()
    small.iterations()
    path = write_report(small.store)
    return (
        small,
        path.read_text(encoding="utf-8"),
        json.loads((path.parent / "report.json").read_text(encoding="utf-8")),
    )


def test_the_page_is_well_formed_and_asks_nobody_for_anything(finished):
    page = Page(finished[1])
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if not link.startswith("#")} == {"data:,", "report.json"}
    assert not re.search(r"url\((?!#)|@import|<script|<iframe|<img", finished[1])
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_every_plot_has_words_and_the_colours_of_the_page(finished):
    page = Page(finished[1])
    assert len(page.plots) == 3 + 3 + 3
    assert all(len(words) > 30 for words in page.plots)
    drawn = re.findall(r"<svg.*?</svg>", finished[1], re.DOTALL)
    assert len(drawn) == 9
    assert {colour for svg in drawn for colour in re.findall(r"(?:fill|stroke): (#\w+)", svg)} <= {"#000000"}


def test_answers_of_a_model_are_text_not_markup(finished):
    text = finished[1]
    assert "<b>0.7</b>" not in text
    assert html.escape("<b>0.7</b> & 3") in text


def test_what_acts_in_a_page_is_written_out_and_nothing_is_fetched(tmp_path):
    small = SmallExperiment(tmp_path, [0.3])
    small.warnings = {"generate": ["a \x1b[31m \u202egnp <img src=//e/x> http://h/?sig=hunter2"]}
    small.iterations()
    text = write_report(small.store).read_text()
    assert "a \\x1b[31m \\u202egnp &lt;img src=//e/x&gt; http://h/?sig=***</dd>" in text
    assert "Content-Security-Policy\" content=\"default-src 'none';" in text


def test_the_data_beside_it_holds_every_figure(finished):
    _, _, data = finished
    assert data["experiment"] == "small"
    assert [model["name"] for model in data["models"]] == ["initial", "0", "1", "2"]
    assert data["models"][1]["gap"] == pytest.approx([0.8, 6, 8])
    assert data["models"][3]["benchmarks"] == pytest.approx({"gsm8k": 0.4, "mmlu": 0.6})
    assert len(data["steps"]["columns"]["reward/margin"]) == 3 * STEPS
    assert data["steps"]["starts"] == [0, STEPS, 2 * STEPS]
    assert len(data["samples"]) >= 5
    assert data["samples"][3]["before_correct"] is False
    assert data["samples"][3]["after_correct"] is True
    assert len(data["table"]["rows"]) == 4


def test_the_lineage_has_every_key_digest_version_and_setting(finished):
    small, text, _ = finished
    for place in (
        "prepare",
        "initial/evaluate",
        "iteration-2/generate",
        "iteration-2/train",
        "iteration-2/evaluate",
    ):
        manifest = small.store.manifest(place)
        assert manifest.key in text
        assert all(output.digest in text for output in manifest.outputs.values())
        assert all(f"{name} {version}" in text for name, version in manifest.spec["versions"].items())
    assert "lm-eval 0.4.13" in text
    assert "temperature" in text
    assert "our reconstruction" in text
    assert "2604.20933" in text
    assert "miniature" in text


def test_the_same_store_gives_the_same_bytes(finished):
    small, text, _ = finished
    data = (small.store.home / "report.json").read_bytes()
    assert write_report(small.store).read_text(encoding="utf-8") == text
    assert (small.store.home / "report.json").read_bytes() == data


def test_the_result_names_both_ends_and_their_intervals(finished):
    result = finished[2]["result"].replace("\xa0", " ")
    assert result.startswith("After 3 iterations of self-play, exact match on held-out prompts rose from ")
    assert " rose from 0.10 [0.00, 0.20] to 0.70 [0.60, 0.80]; " in result


def test_a_change_within_its_intervals_is_not_called_a_rise():
    rows = [
        Row(iteration=None, exact_match=around(0.3)),
        Row(iteration=0, exact_match=around(0.35)),
    ]
    assert "moved within its intervals from 0.30" in sentence(rows)


def test_an_average_has_a_standard_error_and_no_interval_beyond_its_range():
    """A half and two thirds with errors of .2: 1.96 errors reach above 100 %, which is no score."""
    found = [Row(iteration=None, average=1 / 2, stderr=0.2), Row(iteration=0, average=2 / 3, stderr=0.2)]
    (tile,) = tiles(found)
    assert tile.note == "standard error 20.0"
    assert "66.7 [27.5,\u00a0100.0]" in sentence(found)


@pytest.mark.parametrize("stage", ["nothing", "initial", "one iteration"])
def test_an_unfinished_experiment_has_a_report(tmp_path, stage):
    small = SmallExperiment(tmp_path, [0.3, 0.4])
    if stage != "nothing":
        small.initial()
    if stage == "one iteration":
        small.iterations(1)
        (small.store.home / "iteration-1").mkdir()
    (small.store.home / "recipe.yaml").write_text("iterations: 2\ntracking:\n  uri: http://me:hunter2@host\n")
    text = write_report(small.store).read_text(encoding="utf-8")
    assert Page(text).open == []
    assert f"Unfinished: {1 if stage == 'one iteration' else 0} of 2 iterations" in text
    assert "hunter2" not in text
    if stage == "one iteration":
        assert "After 1 iteration of self-play" in text
        assert re.search(r"iteration-1/train</strong> <span class=\"hint\">not finished", text)


def test_without_scores_and_without_an_answer_pattern(tmp_path):
    small = SmallExperiment(tmp_path, [None, None])
    small.evaluate = lambda average, exact: lambda spec, out: bare(out)

    def bare(out):
        from iris_core.store import Outcome

        (out / "scores").mkdir()
        return Outcome(outputs={"scores": out / "scores"}, metrics=EvaluateMetrics())

    small.initial()
    small.iterations()
    path = write_report(small.store)
    data = json.loads((path.parent / "report.json").read_text())
    assert len(data["samples"]) >= 5
    assert data["samples"][0]["how"].startswith("sampled by the opponents of iterations 0 and 1")
    assert Page(path.read_text()).open == []


def test_warnings_are_a_box_near_the_top_and_text_not_markup(tmp_path):
    small = SmallExperiment(tmp_path, [0.3, 0.4])
    small.warnings = {"generate": ["12 of 18 are <b>cut</b> at http://me:hunter2@host"]}
    small.iterations()
    text = write_report(small.store).read_text()
    assert "<b>cut</b>" not in text
    assert "hunter2" not in text
    box = text[text.index('id="warnings"') : text.index("</section>")]
    assert box.count("12 of 18 are &lt;b&gt;cut&lt;/b&gt; at http://***@host") == 2
    assert re.findall("<dt>(.*?)</dt>", box) == ["iteration 0 · generate", "iteration 1 · generate"]
    assert text.index('id="warnings"') < text.index('class="tiles"')
    assert Page(text).open == []


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """An experiment with a verifier: its page and its data."""
    settings = {"verification": {"kind": "math"}, "generation": {"samples": 4}}
    small = SmallExperiment(tmp_path_factory.mktemp("judged"), [0.3, 0.4], **settings)
    small.initial()
    small.iterations()
    path = write_report(small.store)
    return path.read_text(encoding="utf-8"), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def test_a_verifier_is_named_where_it_judged(judged):
    page, data = judged
    assert "xact match" not in page
    assert data["table"]["headers"][-2] == "accuracy (math) [95 %]"
    assert data["tiles"][0]["name"] == "held-out accuracy (math)"
    assert "accuracy (math) on held-out prompts rose from" in data["result"]
    assert [model.get("verifier") for model in data["models"]] == ["math"] * 3
    assert "✗ not right" in page
    assert "ρ = 3.0" in page


def test_the_shares_of_verdicts_are_in_the_report(judged):
    """Of 32 responses to 8 prompts 20 are right, 10 wrong and 2 undecided; 6 prompts have right and wrong ones."""
    page, data = judged
    assert "<td>62.5\u00a0%</td><td>31.2\u00a0%</td><td>6.2\u00a0%</td><td>75.0\u00a0%</td>" in page
    plots = Page(page).plots
    assert "iteration 1: right 62%, wrong 31%, undecided 6%, mixed 75%" in "; ".join(plots)
    assert data["models"][1]["generated"]["mixed"] == 6


def test_no_warnings_no_box(finished):
    assert 'id="warnings"' not in finished[1]
    assert finished[2]["warnings"] == []
    assert "other settings" not in finished[1]


def test_the_share_of_cut_responses_is_in_the_report(finished):
    assert "<td>1 (12.5\u00a0%)</td>" in finished[1]


def test_responses_that_were_all_there_have_no_rate(tmp_path, monkeypatch):
    """A generation whose manifest was damaged takes every shard over."""
    sampled = SmallExperiment.generate

    def taken_over(self, spec, out):
        outcome = sampled(self, spec, out)
        metrics = outcome.metrics.model_copy(update={"tokens_per_second": None})
        return outcome.model_copy(update={"metrics": metrics})

    monkeypatch.setattr(SmallExperiment, "generate", taken_over)
    small = SmallExperiment(tmp_path, [0.3])
    small.initial()
    small.iterations()
    assert "<td>0</td><td>–</td>" in write_report(small.store).read_text()


def test_a_history_with_a_number_missing_is_drawn_with_a_hole():
    svg = figures.curves("x", {"annotated": [0.1, float("nan"), 0.3]}, [0], "y")
    assert svg.startswith("<svg")
    assert "NaN" not in svg


def test_the_report_names_the_objective_that_was_trained(tmp_path):
    for name, words in (("iris", "λ = 1.0 times"), ("spin", "trains with <code>spin</code>")):
        small = SmallExperiment(tmp_path / name, [0.3], objective={"name": name})
        small.iterations()
        page = " ".join(write_report(small.store).read_text().split())
        assert words in page
        assert ("our reconstruction" in page) == (name == "iris")


@pytest.mark.parametrize("name", ["train/history.jsonl", "evaluate/heldout.parquet"])
def test_what_has_changed_since_its_stage_wrote_it_is_not_reported(tmp_path, name):
    small = SmallExperiment(tmp_path, [0.3])
    small.initial()
    small.iterations()
    stage, _, file = name.partition("/")
    made = small.store.manifest(f"iteration-0/{stage}")
    assert made is not None
    damage(made.folder / file, "flipped")
    with pytest.raises(StoreError, match=f"{file} is missing or has changed .*: run again"):
        write_report(small.store)
