"""Where rows come from: every type of file, folders, globs, the hub; what is digested; and each refusal."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iris_core.common.errors import ConfigError, DataError, ServiceError
from iris_core.config import DataPart
from iris_core.data.conversations import SourceRecord
from iris_core.data.sources import pin, read_conversations, source_digest
from tests.iris_core.fake_hub import FakeHub, fake_hub

pytestmark = pytest.mark.unit


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows(*numbers):
    return [{"prompt": f"q{n}", "response": f"a{n}"} for n in numbers]


def read(path, **data):
    """(question, answer) of everything read, in order."""
    reading = reading_of(path, **data)
    return [(turn.messages[-1]["content"], turn.answer["content"]) for row in reading.rows for turn in row]


def reading_of(path, **data):
    part = pin(DataPart(path=path if isinstance(path, list) else str(path), **data))
    return read_conversations(part, part.path, 0)


def digest(path, **data):
    part = pin(DataPart(path=path if isinstance(path, list) else str(path), **data))
    return source_digest("data.path", part, part.path)


def pairs(*numbers):
    return [(f"q{n}", f"a{n}") for n in numbers]


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


CSV = b"prompt,response\r\nq0,a0\r\nq1,a1\r\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", lines(rows(0, 1))),
        ("x.JSONL", b"\xef\xbb\xbf" + lines(rows(0)) + b"\n\n" + lines(rows(1)).strip()),
        ("x.ndjson", lines(rows(0, 1))),
        ("x.jsonl", json.dumps(rows(0, 1), indent=1).encode()),
        ("x.json", json.dumps(rows(0, 1), indent=1).encode()),
        ("x.json", lines(rows(0, 1))),
        ("x.json", json.dumps({"version": 1, "data": rows(0, 1)}).encode()),
        ("x.csv", CSV),
        ("x.csv", b"\xef\xbb\xbf" + CSV),
        ("x.tsv", CSV.replace(b",", b"\t")),
        ("x.jsonl.gz", gzip.compress(lines(rows(0, 1)), mtime=0)),
        ("x.jsonl.zst", zstd(lines(rows(0))) + zstd(lines(rows(1)))),
        ("x.json.bz2", bz2.compress(json.dumps(rows(0, 1)).encode())),
        ("x.csv.xz", lzma.compress(CSV)),
        ("what [is] this*?.jsonl", lines(rows(0, 1))),
    ],
)
def test_types_of_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == pairs(0, 1)


def test_columnar_files(tmp_path):
    table = pa.Table.from_pylist(rows(0, 1))
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "x.parquet") == read(tmp_path / "x.arrow") == pairs(0, 1)


def test_values_of_csv_are_the_text_in_the_file(tmp_path):
    values = ["007", "1.50", "1e3", "2024-01-02", "True", "NA", "None", "null", "nan", ""]
    quoted = 'q,"two\nlines, and ""quotes"""\n'
    text = "prompt,response\n" + "".join(f"q,{value}\n" for value in values) + quoted
    (tmp_path / "x.csv").write_text(text)
    answers = [answer for _, answer in read(tmp_path / "x.csv")]
    assert answers == [*values, 'two\nlines, and "quotes"']


def test_values_of_json_are_as_written(tmp_path):
    written = ["7", "1.50", "1e3", "-0.0", "12345678901234567890", "true", '"2024-01-02T00:00:00"', "NaN", "null"]
    (tmp_path / "x.jsonl").write_text(
        "".join(f'{{"prompt": "q", "response": {value}}}\n' for value in [*written, '"x"'])
    )
    answers = [answer for _, answer in read(tmp_path / "x.jsonl")]
    assert answers == [*[value.strip('"') for value in written[:-1]], "", "x"]


def test_values_of_parquet_are_their_text(tmp_path):
    columns = {
        "prompt": pa.array(["int", "float"]),
        "response": pa.array([1.1, float("nan")], pa.float32()),
        "system": pa.array([7, None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    first, second = reading_of(tmp_path / "x.parquet").rows
    assert first[0].answer["content"] == "1.1"
    assert first[0].messages[0] == {"role": "system", "content": "7"}
    assert second[0].answer["content"] == ""  # pandas writes a missing number as NaN
    assert len(second[0].messages) == 1


def test_nulls_that_a_columnar_file_adds_to_messages_are_left_out(tmp_path):
    calls = [{"type": "function", "function": {"name": "f", "arguments": given}} for given in ({"x": 1}, {"y": 2})]
    talk = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": talk}]), tmp_path / "x.parquet")
    assert reading_of(tmp_path / "x.parquet").rows[0][1].messages == talk[:3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "x.jsonl is empty: give a file with annotated pairs"),
        ("x.csv", b"prompt,response\n", "x.csv is empty"),
        ("x.jsonl", lines(rows(0)) + b'{"prompt"', r"x.jsonl cannot be read: line 2: Expecting ':'"),
        ("x.jsonl", b'{"prompt": 1, "prompt": 2}', "line 1: 'prompt' is there twice"),
        ("x.jsonl", b'"text"\n', "line 1 is 'text', an object with named values is needed"),
        ("x.json", b'{"a": [{"b": 1}], "c": [{"b": 1}]}', "several lists of rows, 'a', 'c': give a file with one"),
        ("x.jsonl", b'{"prompt": "h\xe9"}', "x.jsonl is not UTF-8 text .*: save it as UTF-8"),
        ("x.csv", "prompt,response\nä,ö\n".encode("utf-16"), "x.csv is not UTF-8 text"),
        ("x.csv", b"prompt,prompt\na,b\n", "'prompt' is there twice"),
        ("x.csv", b"prompt,response\na,b,c\n", "line 2 has 3 fields, the header has 2"),
        ("x.csv", b'prompt,response\na,"b\n', "x.csv cannot be read: unexpected end of data"),
        ("x.parquet", b"hello", "x.parquet cannot be read"),
        ("x.jsonl.gz", gzip.compress(lines(rows(0, 1)), mtime=0)[:-9], "x.jsonl.gz cannot be read"),
        ("x.jsonl.gz", lines(rows(0, 1)), "x.jsonl.gz cannot be read: Not a gzipped file"),
        ("x.jsonl.zst", zstd(lines(rows(*range(99))))[:-9], "x.jsonl.zst cannot be read"),
        (
            "x.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, .*: run `git lfs pull`",
        ),
        ("x.txt", b"hello", "cannot read '.txt' files: give one of .jsonl"),
        ("x.parquet.gz", b"hello", "cannot read '.parquet.gz' files"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with two shards whose rows have different columns, and things that are no data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shards = tmp_path / "mydata"
    shards.mkdir()
    (shards / "part-1.jsonl").write_bytes(lines(rows(0)))
    extra = [{"prompt": "q1", "response": "a1", "system": "Be brief."}]
    (shards / "part-2.jsonl.gz").write_bytes(gzip.compress(lines(extra)))
    (shards / "_SUCCESS").touch()
    (shards / ".hidden.jsonl").write_bytes(lines(rows(9)))
    return tmp_path


@pytest.mark.parametrize("path", ["mydata", "./mydata", "~/mydata", "mydata/part-*", "*/*", "mydata/**/*.json*"])
def test_folders_and_globs(folder, path):
    assert read(path) == pairs(0, 1)
    assert reading_of(path).rows[1][0].messages[0] == {"role": "system", "content": "Be brief."}
    assert digest(path) == digest(folder / "mydata")


def test_what_exists_is_no_glob(folder):
    (folder / "a[1]").mkdir()
    (folder / "a[1]" / "x-1.jsonl").write_bytes(lines(rows(0)))
    (folder / "a1").mkdir()
    (folder / "a1" / "x-2.jsonl").write_bytes(lines(rows(1)))
    assert read("a[1]") == read("a[1]/x-*.jsonl") == pairs(0)
    with pytest.raises(DataError, match=r"data.path: b\*.jsonl matches no file"):
        read("b*.jsonl")


def test_a_changed_byte_changes_the_digest_and_a_name_does_not(folder):
    before = digest("mydata")
    (folder / "mydata").rename(folder / "other")
    assert digest("other") == before
    (folder / "other" / "part-1.jsonl").write_bytes(lines(rows(2)))
    assert digest("other") != before


def test_splits_by_the_names_of_files(folder):
    (folder / "mydata" / "test.jsonl").write_bytes(lines(rows(5)))
    assert read("mydata") == pairs(0, 1)
    assert read("mydata", split="test") == pairs(5)
    (folder / "mydata" / "train_a.jsonl").write_bytes(lines(rows(6)))
    reading = reading_of("mydata")
    assert [row[0].messages[0]["content"] for row in reading.rows] == ["q6"]
    assert reading.warnings == ["mydata: not read, because their names say no split: part-1.jsonl, part-2.jsonl.gz"]
    with pytest.raises(DataError, match="mydata has no split 'dev'; it has 'test', 'train': set data.split"):
        read("mydata", split="dev")


README = """---
configs:
- config_name: a
  data_files: a/*.jsonl
- config_name: b
  data_files:
  - split: good
    path: [b/1.jsonl, b/2.*]
---
"""


def test_subsets_of_a_readme(tmp_path):
    for name, row in {"a/x.jsonl": 0, "b/1.jsonl": 1, "b/2.jsonl": 2, "b/3.jsonl": 3}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines(rows(row)))
    (tmp_path / "README.md").write_text(README)
    assert read(tmp_path, name="a") == pairs(0)
    assert read(tmp_path, name="b", split="good") == pairs(1, 2)
    with pytest.raises(DataError, match="has the subsets 'a', 'b': set data.name"):
        read(tmp_path)
    with pytest.raises(DataError, match="has no subset 'c'; it has 'a', 'b': set data.name"):
        read(tmp_path, name="c")
    with pytest.raises(DataError, match="has no split 'train'; it has 'good': set data.split"):
        read(tmp_path, name="b")


def test_save_to_disk(tmp_path):
    plain = datasets.Dataset.from_list(rows(0, 1))
    plain.save_to_disk(tmp_path / "plain", num_shards=2)
    datasets.DatasetDict({"train": plain, "extra": plain.select([1])}).save_to_disk(tmp_path / "d")
    assert read(tmp_path / "plain") == read(tmp_path / "d") == pairs(0, 1)
    assert read(tmp_path / "d", split="extra") == pairs(1)
    with pytest.raises(DataError, match="has no split 'test'; it has 'train', 'extra': set data.split"):
        read(tmp_path / "d", split="test")
    with pytest.raises(DataError, match="has no split 'test'; it has 'train': set data.split"):
        read(tmp_path / "plain", split="test")


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for path in ("no.jsonl", "./no", "~/no", "/no/where", "a/b/c"):
        with pytest.raises(DataError, match="data.path: there is no file or folder"):
            read(path)
    with pytest.raises(DataError, match="empty holds no data files: .jsonl, .* can be read"):
        read("empty")


@pytest.mark.parametrize("path", ["https://example.com/pairs.jsonl", "hf://datasets/a/b", "s3://a/b.parquet"])
def test_an_address_is_no_path(path):
    with pytest.raises(DataError, match=f"data.path: {path} is an address: download the file"):
        read(path)


def test_sources_with_weights_are_mixed_in_proportion_without_repetition(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(rows(*range(100))))
    (tmp_path / "b.jsonl").write_bytes(lines(rows(*range(100, 160))))
    both = [{"path": str(tmp_path / "a.jsonl"), "weight": 3}, {"path": str(tmp_path / "b.jsonl"), "weight": 1}]
    mixed = read(both)
    assert len(mixed) == len(set(mixed)) == 100 + 33
    assert set(pairs(*range(100))) < set(mixed)
    assert read(both) == mixed
    plain = reading_of([{"path": each["path"]} for each in both])
    assert [source.used for source in plain.sources] == [100, 60]
    assert plain.rows[100][0].place == f"{tmp_path}/b.jsonl, row 0"
    with pytest.raises(ConfigError, match="give a weight to all sources, or to none"):
        read([both[0], {"path": both[1]["path"]}])
    with pytest.raises(ConfigError, match=r"b.jsonl none of its 60 rows would be drawn: raise it"):
        read([both[0], {**both[1], "weight": 0.001}])


def test_sources_have_formats_of_their_own(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(rows(0)))
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": "q1", "input": "", "output": "a1"}]))
    both = [str(tmp_path / "a.jsonl"), {"path": str(tmp_path / "b.json"), "format": "alpaca"}]
    assert read(both) == pairs(0, 1)
    assert [source.format for source in reading_of(both).sources] == ["pairs", "alpaca"]
    with pytest.raises(ConfigError, match="data.format: alpaca has columns of its own: leave out"):
        read(both, prompt_column="prompt")


def test_rows_that_cannot_be_understood_are_named_or_counted(tmp_path):
    content = [*rows(0), {"prompt": "q", "response": ["x"]}, {"prompt": "q", "response": [1]}]
    (tmp_path / "x.jsonl").write_bytes(lines(content))
    with pytest.raises(
        DataError, match=r"x.jsonl, row 1: column 'response' holds \['x'\] \(list\), text is needed: fix it, or set"
    ):
        read(tmp_path / "x.jsonl")
    reading = reading_of(tmp_path / "x.jsonl", on_invalid="drop")
    assert (len(reading.rows), reading.dropped) == (1, {"not text": 2})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch, tmp_path / "cache") as served:
        yield served


def test_a_data_set_on_the_hub(hub, monkeypatch):
    repository = hub.add("datasets/acme/Chat-2.5")
    repository.files = {
        "README.md": README.encode(),
        "a/[1].jsonl": lines(rows(0)),
        "b/1.jsonl": lines(rows(1)),
        "b/2.csv": b"prompt,response\nq2,007\n",
    }
    data = pin(DataPart(path="acme/Chat-2.5", name="b", split="good"))
    assert [source.revision for source in data.path] == [repository.commit]
    reading = read_conversations(data, data.path, 0)
    assert [row[0].answer["content"] for row in reading.rows] == ["a1", "007"]
    (record,) = reading.sources
    assert record == SourceRecord(path="acme/Chat-2.5", revision=repository.commit, format="pairs", rows=2, used=2)
    before = source_digest("data.path", data, data.path)
    assert not any("[1]" in request for request in hub.requests)  # only what is read is downloaded
    assert read("acme/Chat-2.5", name="a") == pairs(0)
    with pytest.raises(DataError, match="acme/Chat-2.5 has the subsets 'a', 'b': set data.name"):
        read("acme/Chat-2.5")
    with pytest.raises(DataError, match="data.revision: acme/Chat-2.5 has no revision 'v9'"):
        read("acme/Chat-2.5", revision="v9")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read("acme/Chat-2.5", name="a") == pairs(0)
    assert digest("acme/Chat-2.5", name="b", split="good") == before
    with pytest.raises(DataError, match="not complete in the cache"):
        read("acme/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    repository.version += 1
    assert digest("acme/Chat-2.5", name="b", split="good") != before


def test_refusals_of_the_hub(hub):
    hub.add("datasets/acme/gated", gated=True)
    hub.add("datasets/acme/busy", refusal="busy")
    with pytest.raises(DataError, match="data.path: acme/gated is gated: ask for access at .*, then"):
        read("acme/gated")
    with pytest.raises(DataError, match="there is no data set acme/none on .*, or it is private"):
        read("acme/none")
    with pytest.raises(ServiceError, match=r"fails \(503\) for acme/busy"):
        read("acme/busy")


def test_a_revision_is_for_the_hub(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(lines(rows(0)))
    with pytest.raises(
        ConfigError,
        match="data.revision: v1 is for data sets on the hub, .*x.jsonl is here: leave it out",
    ):
        read(tmp_path / "x.jsonl", revision="v1")
