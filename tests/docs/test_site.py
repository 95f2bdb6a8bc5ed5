"""The site that `make docs` builds: without a network, with every link right, and with what the code says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from iris_core.config import Experiment

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # a proxy that answers nobody
PARTS = "README.md CONTRIBUTING.md CHANGELOG.md mkdocs.yml docs docker benchmarks deployments iris_core"
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs, in a world whose proxies lead nowhere."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site],
        cwd=root,
        env={**os.environ, **proxies},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


class Reader(HTMLParser):
    """The rows of tables, and what a browser loads by itself."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.assets: list[str] = []
        self.classes: set[str] = set()
        self.cell = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.assets += filter(None, [found.get(LOADED.get(tag, ""))])
        self.classes |= set((found.get("class") or "").split())
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] += data


def settings(part: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted name, value and description of every setting of `part`."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.description or ""


def shown(value: Any) -> str:
    """A default as the page writes it."""
    return str(value) if isinstance(value, str) else json.dumps(value, default=str).replace('"', "")


def rows_of(page: Path) -> dict[str, list[str]]:
    """The rows by their first cells; the first of two, as the parts of lists come last."""
    return {row[0]: row[1:] for row in reversed(Reader(page).rows) if row}


def test_every_setting_is_there_with_its_default_and_meaning(site):
    rows = rows_of(site / "docs" / "settings.html")
    required = {"name": "n", "model.path": "m", "data.path": "d"}
    least = {"name": "n", "model": {"path": "m"}, "data": {"path": "d"}}
    expected = list(settings(Experiment.model_validate(least)))
    assert len(expected) > 60
    for name, value, description in expected:
        assert rows[name][1] == ("required" if name in required else shown(value)), name
        assert rows[name][3] == description.replace("`", ""), name


def test_a_setting_has_its_type_and_range(site):
    rows = rows_of(site / "docs" / "settings.html")
    assert rows["schedule.max_order"][:3] == ["number", "2.0", "> -50, < 50"]
    assert rows["training.lora.rank"][:3] == ["integer", "16", "≥ 1, ≤ 512"]
    assert rows["training.method"][:3] == ["choice", "lora", "lora, full"]
    assert rows["data.max_pairs"][:3] == ["integer or null", "null", "≥ 2"]
    assert rows["data.path"][:3] == ["text or list of Source", "required", "items ≥ 1"]
    assert rows["weight"][:3] == ["number or null", "null", "> 0"]  # of a Source
    assert not [row for row in rows if "(?!" in row]


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        read = Reader(page)
        assert not [asset for asset in read.assets if re.match(r"(\w+:)?//", asset)], page
        assert "mermaid" not in read.classes, page  # the theme would fetch it
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_docstrings_commands_and_recipes_are_put_in(site):
    def text(page: str) -> str:
        return re.sub(r"<[^>]+>", "", (site / "docs" / page).read_text(encoding="utf-8"))

    assert "ready to generate, and its tokenizer" in text("api/python.html")
    assert "a lower bound on D_α(p_data‖p_t)/α" in text("api/objectives.html")
    assert "iris doctor" in text("api/command.html")
    assert "learning_rate: [5.0e-7, 5.0e-7, 1.0e-7]" in text("recipes.html")
    assert not [page for page in site.rglob("*.html") if "<!-- generated" in page.read_text("utf-8")]


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path):
    root = tmp_path / "copy"
    root.mkdir()
    for name in PARTS.split():
        (root / name).symlink_to(ROOT / name)
    (root / "README.md").unlink()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (root / "README.md").write_text(text.replace("](docs/data.md)", "](docs/date.md)", 1), "utf-8")
    done = build(root, tmp_path / "site")
    assert done.returncode == 1
    assert "'README.md' contains a link 'docs/date.md'" in done.stderr
