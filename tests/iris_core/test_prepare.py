"""Bad models and data, each with one message that names the field or file, the value and the remedy."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from iris_core.common.errors import ConfigError, DataError, ModelError
from iris_core.config import DataPart, parse_experiment
from iris_core.data.chat import Chat
from iris_core.data.conversations import single_turn
from iris_core.data.pairs import load_pairs
from iris_core.modeling import loading
from iris_core.pipeline import plan
from iris_core.prepare import prepare
from iris_core.store import run_stage

pytestmark = pytest.mark.unit

GOOD = [{"prompt": f"Question {i}?", "response": f"Answer: {i}"} for i in range(12)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def run(tiny_model, tmp_path, rows, suffix=".jsonl", model=None, training=None, generation=None, **data):
    """`rows` as dictionaries, or as the file's bytes."""
    path = tmp_path / f"pairs{suffix}"
    path.write_bytes(rows if isinstance(rows, bytes) else lines(rows).encode())
    config = parse_experiment(
        {
            "name": "t",
            "model": {"path": str(model or tiny_model)},
            "data": {"path": str(path), "heldout": 3, **data},
            "training": training or {},
            "generation": generation or {},
        }
    )
    return run_stage(spec := plan.prepare_spec(config), tmp_path / spec.key()[:16], prepare)


def test_splits_by_seed_and_keeps_every_pair(tiny_model, tmp_path):
    manifest = run(tiny_model, tmp_path, GOOD)
    source = {"path": str(tmp_path / "pairs.jsonl"), "revision": None, "format": "pairs", "rows": 12, "used": 12}
    assert manifest.metrics == {
        "train_pairs": 9,
        "heldout_pairs": 3,
        "prompts": 0,
        "format": "pairs",
        "sources": [source],
        "dropped": {},
        "warnings": [],
        "packing": "packed",
        "packing_reason": None,
        "sizes": {  # a layer: 64·64·2 + 64·32·2 + 3·64·128; its adapter of rank 16: 16·(128·2 + 96·2 + 192·3)
            "parameters": 2 * (36_864 + 2 * 64) + 384 * 64 + 64,
            "adapter": 2 * 16_384,
            "matrices": 2 * 36_864 + 384 * 64,
            "layers": 2,
            "matrices_in_layer": 36_864,
            "hidden": 64,
            "inner": 128,
            "attention": 64 + 32,  # 2 queries and 1 key of 32 numbers
            "norms": 2,
            "head_norms": False,
            "fused": True,
            "experts": 0,
        },
    }
    pairs = load_pairs(manifest.artifact("pairs"))
    assert sorted(pair.prompt for pair in pairs) == sorted(row["prompt"] for row in GOOD)
    assert len(load_pairs(manifest.artifact("pairs"), "heldout")) == 3
    prepared = plan.Prepared.of(manifest)
    assert prepared.initial.model.path == tiny_model
    loading.verify(prepared.initial)
    assert prepared.stop_token_ids == [2]
    assert prepared.packing == "packed"
    tokenizer = loading.load_tokenizer(tiny_model)
    for pair in pairs:
        question = f"<|im_start|>user\n{pair.prompt}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(pair.prompt_ids) == question
        assert tokenizer.decode(pair.response_ids) == f"{pair.response}<|im_end|>"


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        (
            GOOD,
            {"response_column": "answer"},
            r"no column 'answer'; it has 'prompt', 'response': set data",
        ),
        ([*GOOD, GOOD[4]], {}, r"row 12: the prompt is there twice; prompt 'Question 4\?'"),
        ([*GOOD, {"prompt": "  ", "response": "a"}], {}, r"row 12: the prompt is empty"),
        ([*GOOD, {"prompt": "a", "response": ""}], {}, r"row 12: the annotated response is empty"),
        (
            [*GOOD, {"prompt": "a", "response": None}],
            {},
            r"row 12: the annotated response is empty; prompt 'a': fix it, or set data.on_invalid",
        ),
        (
            [{"prompt": "a", "response": ["b", "c"]}],
            {},
            r"row 0: column 'response' holds \['b', 'c'\] \(list\), text is needed",
        ),
        (
            GOOD,
            {"max_response_tokens": 3},
            r"the response has \d+ tokens, data.max_response_tokens is 3",
        ),
        (GOOD, {"max_prompt_tokens": 5}, r"the prompt has \d+ tokens, data.max_prompt_tokens is 5"),
        (GOOD[:3], {}, r"has 3 usable pairs, data.heldout takes 3 of them: lower data.heldout"),
        (
            GOOD,
            {"answer_pattern": "Result: (.*)"},
            r"data.answer_pattern: 'Result: \(.\*\)' is found in no annotated held-out answer",
        ),
    ],
)
def test_bad_data_is_named(tiny_model, tmp_path, rows, data, message):
    with pytest.raises(DataError, match=message):
        run(tiny_model, tmp_path, rows, **data)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".jsonl", b"", r"pairs.jsonl is empty: give a file with annotated pairs"),
        (
            ".jsonl",
            lines(GOOD).encode() + b'{"prompt"',
            r"pairs.jsonl cannot be read: line 13: Expecting",
        ),
        (
            ".jsonl",
            lines(GOOD).encode() + b'{"prompt": "h\xe9", "response": "x"}\n',
            r"pairs.jsonl is not UTF-8 text .*: save it as UTF-8",
        ),
        (".csv", b"prompt,response\nh\xe9,x\n", r"pairs.csv is not UTF-8 text .*: save it as"),
        (".csv", b"prompt,response\na,b\nc,\n", r"pairs.csv, row 1: the annotated response is"),
        (".parquet", b"hello", r"pairs.parquet cannot be read: Parquet file size is 5 bytes"),
    ],
)
def test_a_bad_file_is_named(tiny_model, tmp_path, suffix, content, message):
    with pytest.raises(DataError, match=message):
        run(tiny_model, tmp_path, content, suffix=suffix)


def test_invalid_pairs_can_be_dropped_and_are_counted(tiny_model, tmp_path):
    rows = [*GOOD, GOOD[0], {"prompt": "", "response": "x"}, {"prompt": "y", "response": " "}]
    manifest = run(tiny_model, tmp_path, rows, on_invalid="drop")
    assert manifest.metrics["dropped"] == {
        "duplicated prompt": 1,
        "empty prompt": 1,
        "empty response": 1,
    }
    assert manifest.metrics["train_pairs"] == 9


def test_unreadable_file_and_unknown_suffix(tiny_model, tmp_path):
    (tmp_path / "pairs.txt").write_text("x")
    config = {
        "name": "t",
        "model": {"path": str(tiny_model)},
        "data": {"path": str(tmp_path / "pairs.txt")},
    }
    with pytest.raises(DataError, match=r"cannot read '.txt' files: give one of .jsonl"):
        run_stage(plan.prepare_spec(parse_experiment(config)), tmp_path / "out", prepare)
    config["data"] = {"path": str(tmp_path / "missing.jsonl")}
    with pytest.raises(DataError, match=r"data.path: there is no file .*missing.jsonl"):
        plan.prepare_spec(parse_experiment(config))


def test_every_turn_of_a_conversation_is_a_pair_on_one_side(tiny_model, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Hello {i}"},
                {"role": "assistant", "content": f"Hi {i}"},
                {"role": "user", "content": "Again?"},
                {"role": "assistant", "content": f"Yes {i}"},
            ]
        }
        for i in range(8)
    ]
    manifest = run(tiny_model, tmp_path, rows)
    assert manifest.metrics["format"] == "messages"
    pairs = load_pairs(manifest.artifact("pairs"))
    tokenizer = loading.load_tokenizer(tiny_model)
    texts = {pair.response: tokenizer.decode(pair.prompt_ids) for pair in pairs}
    assert texts["Yes 3"] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello 3<|im_end|>\n"
        "<|im_start|>assistant\nHi 3<|im_end|>\n<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n"
    )
    sides = {pair.response.split()[1]: set() for pair in pairs}
    for pair in pairs:
        sides[pair.response.split()[1]].add(pair.split)
    assert len(pairs) == 16
    assert all(len(side) == 1 for side in sides.values())
    assert manifest.metrics["heldout_pairs"] == 4  # two conversations: 3 pairs would divide one


def test_answers_are_found_as_in_the_evaluation(tiny_model, tmp_path):
    """`^` and `$` are those of a line. Turns without an answer are left out of exact match; a warning says how many."""
    turns = [
        [
            {"role": "user", "content": f"Hello {i}"},
            {"role": "assistant", "content": "Ask me."},
            {"role": "user", "content": "Go on."},
            {"role": "assistant", "content": f"So:\nAnswer: {i}\nDone."},
        ]
        for i in range(8)
    ]
    rows = [{"messages": messages} for messages in turns]
    pattern = "^Answer: (.+)$"
    manifest = run(tiny_model, tmp_path, rows, turns="last", answer_pattern=pattern)
    assert manifest.metrics["warnings"] == []
    manifest = run(tiny_model, tmp_path, rows, heldout=4, answer_pattern=pattern)
    assert manifest.metrics["warnings"] == [
        "data.answer_pattern: exact match leaves out 2 of 4 held-out pairs, because '^Answer: (.+)$' is not found in "
        "their annotated answers, such as 'Ask me.'"
    ]


def test_the_split_has_a_seed_of_its_own(tiny_model, tmp_path):
    def heldout(**data):
        manifest = run(tiny_model, tmp_path, GOOD, **data)
        return {pair.prompt for pair in load_pairs(manifest.artifact("pairs"), "heldout")}

    assert heldout() == heldout(split_seed=0) != heldout(split_seed=1)  # the experiment's seed is 0


def test_near_duplicates_are_on_one_side(tiny_model, tmp_path):
    forms = ("Question {}?", "QUESTION  {}?", " question\t{}\uff1f ")
    rows = [{"prompt": form.format(n), "response": "x"} for n in range(12) for form in forms]
    manifest = run(tiny_model, tmp_path, rows, heldout=6)
    pairs = load_pairs(manifest.artifact("pairs"))
    sides = {}
    for pair in pairs:
        sides.setdefault("".join(filter(str.isdigit, pair.prompt)), []).append(pair.split)
    assert sorted(map(len, sides.values())) == [3] * 12
    assert sum(set(side) == {"heldout"} for side in sides.values()) == 2
    assert sum(set(side) == {"train"} for side in sides.values()) == 10


def test_prompts_of_the_held_out_file_are_not_trained_on(tiny_model, tmp_path):
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(lines([{"prompt": "QUESTION 3? ", "response": "x"}]))
    with pytest.raises(DataError, match="heldout_path has 1 usable pair, two are needed"):
        run(tiny_model, tmp_path, GOOD, heldout_path=str(heldout), on_invalid="drop")
    heldout.write_text(lines([{"prompt": f"{word} 3? ", "response": "x"} for word in ("QUESTION", "Other")]))
    with pytest.raises(DataError, match="row 3: the prompt is in the held-out data, too"):
        run(tiny_model, tmp_path, GOOD, heldout_path=str(heldout))
    manifest = run(tiny_model, tmp_path, GOOD, heldout_path=str(heldout), on_invalid="drop")
    assert manifest.metrics["dropped"] == {"held-out prompt": 1}
    assert manifest.metrics["train_pairs"] == 11


def test_more_held_out_pairs_than_asked_for_are_not_cut_by_their_order(tiny_model, tmp_path):
    """The file may be sorted by subject: its first rows are no sample of it."""
    rows = [{"prompt": f"Other {i}?", "response": "x"} for i in range(40)]
    heldout, chosen = tmp_path / "heldout.jsonl", []
    for file_of, seed in ((rows, 1), (rows[::-1], 1), (rows, 2)):
        heldout.write_text(lines(file_of))
        manifest = run(tiny_model, tmp_path, GOOD, heldout_path=str(heldout), heldout=20, split_seed=seed)
        chosen.append([pair.prompt for pair in load_pairs(manifest.artifact("pairs"), "heldout")])
    assert len(chosen[0]) == 20
    assert chosen[0] == chosen[1][::-1] == chosen[2]
    assert 4 <= sum(prompt in {row["prompt"] for row in rows[:20]} for prompt in chosen[0]) <= 16


def prompts_file(tmp_path, rows):
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines(rows))
    return {"prompts_path": str(path)}


def run_verified(tiny_model, tmp_path, rows, **data):
    """`run` with a verifier, which prompts without annotation and references need."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines(rows))
    config = parse_experiment(
        {
            "name": "t",
            "model": {"path": str(tiny_model)},
            "data": {"path": str(path), "heldout": 3, **data},
            "verification": {"kind": "math"},
        }
    )
    return run_stage(spec := plan.prepare_spec(config), tmp_path / spec.key()[:16], prepare)


def test_prompts_without_annotation_are_new_ones_to_train_on(tiny_model, tmp_path):
    """Annotated, held-out and repeated prompts are left out and counted, in other words for case and space, too."""
    heldout = tmp_path / "heldout.jsonl"
    rows = [
        {"prompt": "New 0?", "response": "ignored", "gold": 7},
        {"prompt": "New 1?"},
        {"prompt": " NEW  1? "},
        {"prompt": "question 3?"},
        {"prompt": "HELD 1?"},
    ]
    good = [{**row, "gold": n} for n, row in enumerate(GOOD)]
    heldout.write_text(lines([{"prompt": f"Held {i}?", "response": "It is 5.", "gold": "5"} for i in range(2)]))
    data = {"heldout_path": str(heldout), "reference_column": "gold", **prompts_file(tmp_path, rows)}
    manifest = run_verified(tiny_model, tmp_path, good, **data)
    counts = {name: manifest.metrics[name] for name in ("train_pairs", "heldout_pairs", "prompts", "dropped")}
    dropped = {"known prompt": 3, "no reference": 1}
    assert counts == {"train_pairs": 12, "heldout_pairs": 2, "prompts": 1, "dropped": dropped}
    assert manifest.metrics["warnings"] == [
        "data.prompts_path: 1 of 2 prompts have nothing in the column 'gold', which verification.kind math compares "
        "with: they are left out"
    ]
    pairs = {pair.prompt: pair for pair in load_pairs(manifest.artifact("pairs"))}
    new = pairs["New 0?"]
    assert (new.response, new.response_ids, new.split, new.annotated, new.reference) == ("", [], "train", False, "7")
    assert "New 1?" not in pairs
    assert (pairs["Question 3?"].annotated, pairs["Question 3?"].reference) == (True, "3")
    assert (pairs["Held 1?"].split, pairs["Held 1?"].reference) == ("heldout", "5")
    tokenizer = loading.load_tokenizer(tiny_model)
    asked = "<|im_start|>user\nNew 0?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(new.prompt_ids) == asked


def test_a_row_of_prompts_with_a_held_out_turn_is_left_out_whole(tiny_model, tmp_path):
    """Its other turn would have the held-out prompt and the annotated answer before it."""

    def row(*texts):
        roles = ("user", "assistant") * len(texts)
        return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}

    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(lines([row(f"Held {i}?", "It is 5.") for i in range(2)]))
    good = [row(f"Question {i}?", "It is 5.") for i in range(4)]
    prompts = [
        row("HELD 1?", "It is 5.", "And then?", "It is 6."),
        row("Question 1?", "It is 5.", "And now?", "It is 6."),
        row("New?", "It is 5."),
    ]
    code = 'while input(): print(\'{"verdict": "right"}\', flush=True)'
    judge = {"kind": "command", "command": [sys.executable, "-c", code]}
    data = {"heldout_path": str(heldout), **prompts_file(tmp_path, prompts)}
    manifest = prepare_with(tiny_model, tmp_path, good, judge, **data)
    found = [pair.prompt for pair in load_pairs(manifest.artifact("pairs")) if not pair.annotated]
    assert sorted(found) == ["And now?", "New?"]
    assert manifest.metrics["dropped"] == {"known prompt": 3}


@pytest.mark.parametrize(("turns", "references"), [("first", [None]), ("last", ["gold"]), ("all", [None, "gold"])])
def test_the_reference_of_a_row_is_that_of_its_last_turn(tiny_model, tmp_path, turns, references):
    rows = [
        {
            "messages": [
                {"role": role, "content": f"{role} {number} {turn}"}
                for turn in (1, 2)
                for role in ("user", "assistant")
            ],
            "gold": "gold",
        }
        for number in range(8)
    ]
    settings = {"command": [sys.executable, "-c", 'while input(): print(\'{"verdict": "right"}\', flush=True)']}
    manifest = prepare_with(
        tiny_model, tmp_path, rows, {"kind": "command", **settings}, turns=turns, reference_column="gold"
    )
    pairs = load_pairs(manifest.artifact("pairs"))
    assert sorted({pair.reference for pair in pairs}, key=str) == sorted(references, key=str)
    assert {pair.response.split()[2] for pair in pairs if pair.reference} <= {"2"}


def prepare_with(tiny_model, tmp_path, rows, verification, **data):
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines(rows))
    settings = {"data": {"path": str(path), "heldout": 3, **data}, "verification": verification}
    config = parse_experiment({"name": "t", "model": {"path": str(tiny_model)}, **settings})
    return run_stage(spec := plan.prepare_spec(config), tmp_path / spec.key()[:16], prepare)


def test_the_verifier_is_proved_on_annotated_responses(tiny_model, tmp_path):
    data = {"answer_pattern": "Answer: (.+)", "reference_column": "gold"}
    rows = [{**row, "gold": f"{n}.0" if n else "one"} for n, row in enumerate(GOOD)]
    manifest = prepare_with(tiny_model, tmp_path, rows, {"kind": "answer"}, **data)
    assert manifest.metrics["warnings"] == [
        "verification.kind: answer does not find 1 of 12 annotated responses right, such as 'Answer: 0' (wrong: 0 is "
        "not one)"
    ]
    rows = [{**row, "gold": "one"} for row in GOOD]
    with pytest.raises(DataError, match="answer finds none of 12 annotated responses right, such as 'Answer: "):
        prepare_with(tiny_model, tmp_path, rows, {"kind": "answer"}, **data)


def test_a_command_that_writes_a_file_that_it_names_is_found(tiny_model, tmp_path):
    """Else each stage would have another key after every run."""
    judge, log = tmp_path / "judge.py", tmp_path / "judge.log"
    judge.write_text(
        "import sys\nfor line in sys.stdin:\n    open(sys.argv[-1].split('=')[-1], 'a').write(line)\n"
        '    print(\'{"verdict": "right"}\', flush=True)\n'
    )
    command = [sys.executable, str(judge)]
    for _ in range(2):  # the file is new, then it is there
        with pytest.raises(ConfigError, match=r"^verification.command: \S+/judge.log changed while the command judged"):
            prepare_with(tiny_model, tmp_path, GOOD, {"kind": "command", "command": [*command, "--log", str(log)]})
    prepare_with(tiny_model, tmp_path, GOOD, {"kind": "command", "command": [*command, f"--log={log}"]})


def test_what_the_verifier_lacks_is_found_before_the_data_is_read(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="verification.command: there is no program 'no-such-program'"):
        prepare_with(tiny_model, tmp_path, [], {"kind": "command", "command": ["no-such-program"]})
    (tmp_path / "schema.json").write_text('{"type": 7}')
    with pytest.raises(ConfigError, match=r"verification.schema_path: \S+schema.json is no JSON Schema"):
        prepare_with(tiny_model, tmp_path, [], {"kind": "json_schema", "schema_path": str(tmp_path / "schema.json")})


def test_the_pairs_beyond_the_most_can_be_prompts(tiny_model, tmp_path):
    """`max_pairs` cuts annotated pairs only; the file of pairs gives its other prompts."""
    data = {"max_pairs": 4, "reference_column": "response", **prompts_file(tmp_path, GOOD)}
    manifest = run_verified(tiny_model, tmp_path, GOOD, **data)
    counts = {name: manifest.metrics[name] for name in ("train_pairs", "heldout_pairs", "prompts")}
    assert counts == {"train_pairs": 4, "heldout_pairs": 3, "prompts": 5}
    assert len({pair.prompt for pair in load_pairs(manifest.artifact("pairs"))}) == 12


@pytest.mark.parametrize(
    ("prompts", "data", "message"),
    [
        ([{"prompt": " "}], {}, r"prompts.jsonl, row 0: the prompt is empty; prompt ' ': fix it, or set"),
        ([{"prompt": "x" * 40}], {"max_prompt_tokens": 30}, r"prompts.jsonl, row 0: the prompt has \d+ tokens"),
        ([{"question": "x"}], {}, r"prompts.jsonl has no columns of a known format; it has 'question': set"),
        (GOOD, {}, r"prompts.jsonl has no usable pair: \{'known prompt': 12\}"),
        (
            [{"prompt": "a"}, {"prompt": "b", "response": ""}],
            {},
            r"^data.prompts_path: all 2 prompts have nothing in the column 'response', which verification.kind math "
            r"compares with: fill it in, or leave prompts_path out$",
        ),
        ([{"prompt": "a"}], {"reference_column": "gold"}, r"pairs.jsonl has no column 'gold'; it has 'prompt', 'resp"),
    ],
)
def test_bad_prompts_are_named(tiny_model, tmp_path, prompts, data, message):
    with pytest.raises(DataError, match=message):
        run_verified(
            tiny_model, tmp_path, GOOD, **{"reference_column": "response", **data, **prompts_file(tmp_path, prompts)}
        )


def test_an_annotated_row_without_its_reference_is_named(tiny_model, tmp_path):
    rows = [{**row, "gold": n or None} for n, row in enumerate(GOOD)]
    with pytest.raises(DataError, match="row 0: column 'gold' is empty, a reference for the verifier is needed"):
        run_verified(tiny_model, tmp_path, rows, reference_column="gold")


def test_prompts_that_changed_after_they_were_digested(tiny_model, tmp_path):
    path, data = tmp_path / "pairs.jsonl", prompts_file(tmp_path, [{"prompt": "a"}])
    path.write_text(lines(GOOD))
    settings = {"path": str(path), "heldout": 3, "reference_column": "response", **data}
    experiment = {"name": "t", "model": {"path": str(tiny_model)}, "verification": {"kind": "math"}, "data": settings}
    spec = plan.prepare_spec(parse_experiment(experiment))
    prompts_file(tmp_path, [{"prompt": "b"}])
    assert plan.prepare_spec(parse_experiment(experiment)).key() != spec.key()
    with pytest.raises(DataError, match="prompts.jsonl has changed since this spec was written: run again"):
        run_stage(spec, tmp_path / "out", prepare)


def test_the_same_question_in_another_context_is_no_duplicate(tiny_model, tmp_path):
    rows = [{"prompt": "Go on.", "response": "x", "system": f"You are {i}."} for i in range(6)]
    assert run(tiny_model, tmp_path, rows).metrics["train_pairs"] == 3


def test_a_bad_first_one_does_not_hide_a_good_second(tiny_model, tmp_path):
    rows = [{"prompt": "a", "response": ""}, {"prompt": "a", "response": "good"}, *GOOD]
    manifest = run(tiny_model, tmp_path, rows, on_invalid="drop")
    assert manifest.metrics["dropped"] == {"empty response": 1}
    assert "good" in {pair.response for pair in load_pairs(manifest.artifact("pairs"))}


def test_when_most_is_dropped_there_is_a_warning(tiny_model, tmp_path):
    rows = [
        *GOOD,
        *[{"prompt": ["x"], "response": "y"}] * 9,
        *[{"prompt": "", "response": "y"}] * 4,
    ]
    manifest = run(tiny_model, tmp_path, rows, on_invalid="drop")
    assert manifest.metrics["dropped"] == {"not text": 9, "empty prompt": 4}
    assert manifest.metrics["warnings"] == [
        f"{tmp_path / 'pairs.jsonl'}: 13 of 25 pairs were dropped: not text 9, empty prompt 4"
    ]
    with pytest.raises(DataError, match=r"has no usable pair: \{'not text': 9, 'empty prompt': 4\}"):
        run(tiny_model, tmp_path, rows[12:], on_invalid="drop")


def test_what_is_not_read_is_in_the_warnings(tiny_model, tmp_path):
    rows = [{"instruction": f"Do {i}.", "input": "this", "output": "x"} for i in range(8)]
    columns = {"prompt_column": "instruction", "response_column": "output"}
    (warning,) = run(tiny_model, tmp_path, rows, **columns).metrics["warnings"]
    assert "without what is in column 'input'" in warning
    manifest = run(tiny_model, tmp_path, rows)
    assert (manifest.metrics["format"], manifest.metrics["warnings"]) == ("alpaca", [])
    assert all("\n\nthis" in pair.prompt for pair in load_pairs(manifest.artifact("pairs")))


def test_data_that_changed_after_it_was_digested(tiny_model, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines(GOOD))
    data = {"path": str(path), "heldout": 3}
    spec = plan.prepare_spec(parse_experiment({"name": "t", "model": {"path": str(tiny_model)}, "data": data}))
    path.write_text(lines(GOOD[:8]))
    with pytest.raises(DataError, match="pairs.jsonl has changed since this spec was written: run"):
        run_stage(spec, tmp_path / "out", prepare)


def test_a_model_without_a_chat_template(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        run(tiny_model, tmp_path, GOOD, model=folder)


def saved(tiny_model, tmp_path, model):
    """A folder with `model` and the tokenizer of the tiny model."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    model.save_pretrained(folder)
    return folder


def changed(tiny_model, tmp_path, **settings):
    """The model's folder with other settings in its configuration."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**before, **settings}))
    return folder


def test_a_model_that_caps_its_scores_is_let_in(tiny_model, tmp_path):
    """Gemma 2 caps its attention scores."""
    config = Gemma2Config(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attn_logit_softcapping=50.0,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder = saved(tiny_model, tmp_path, Gemma2ForCausalLM(config))
    manifest = run(tiny_model, tmp_path, GOOD, model=folder)
    assert plan.Prepared.of(manifest).packing == "packed"


def test_a_model_with_a_state_is_trained_in_separate_rows(tiny_model, tmp_path):
    config = Mamba2Config(
        vocab_size=384,
        hidden_size=32,
        num_hidden_layers=1,
        head_dim=16,
        num_heads=4,
        n_groups=1,
        state_size=8,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder = saved(tiny_model, tmp_path, Mamba2ForCausalLM(config))
    full = {"method": "full"}
    manifest = run(tiny_model, tmp_path, GOOD, model=folder, training=full)
    assert plan.Prepared.of(manifest).packing == "separate"
    reason = manifest.metrics["packing_reason"]
    assert reason == "its layers cannot be told which tokens belong together"
    assert manifest.metrics["warnings"] == [
        f"training.packing: separate rows, which are slower than packed ones: {reason}"
    ]
    with pytest.raises(ModelError, match=rf"training.packing: packed rows are wrong .*{reason}"):
        run(tiny_model, tmp_path, GOOD, model=folder, training={**full, "packing": "packed"})
    with pytest.raises(ModelError, match="training.lora.targets: 'all-linear' does not fit Mamba2"):
        run(tiny_model, tmp_path, GOOD, model=folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, r"is no causal language model \(config.json, model_type: bert"),
        ({"model_type": "vit"}, "transformers has no causal language model for model_type 'vit'"),
        ({"model_type": "bart"}, "model_type: bart, is_encoder_decoder: True"),
        ({"model_type": "unheard_of"}, "describes no model that transformers [0-9.]+ knows"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_in_a_line(tiny_model, tmp_path, settings, message):
    folder = changed(tiny_model, tmp_path, **settings)
    with pytest.raises(ModelError, match=message) as caught:
        run(tiny_model, tmp_path, GOOD, model=folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rope", "most"),
    [
        ({"rope_type": "default"}, 280),
        ({"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 200}, 300),
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 280}, 280),
    ],
)
def test_a_text_longer_than_the_model_takes_is_refused(tiny_model, tmp_path, rope, most):
    """A prompt has 25 tokens here, give or take one; 256 can be sampled."""
    rope = {**rope, "rope_theta": 10000.0}
    folder = changed(tiny_model, tmp_path, max_position_embeddings=280, rope_parameters=rope)
    rows = [{"prompt": f"{i:02d}", "response": "yes"} for i in range(12)]
    run(tiny_model, tmp_path, rows, model=folder)
    long = [*rows, {"prompt": "?", "response": "y" * most}]
    with pytest.raises(DataError, match=rf"the model takes {most} \(max_position_embeddings\): lower"):
        run(tiny_model, tmp_path, long, model=folder)
    with pytest.raises(DataError, match="generation.max_new_tokens"):
        run(tiny_model, tmp_path, rows, model=folder, generation={"max_new_tokens": most})


def test_longrope_is_packed_up_to_where_its_scaling_changes(tiny_model, tmp_path):
    """Positions from 50 on switch the whole row to other factors."""
    factors = {"long_factor": [4.0] * 16, "short_factor": [1.0] * 16}
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 50,
        **factors,
    }
    config = Phi3Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        original_max_position_embeddings=50,
        rope_parameters=rope,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder = saved(tiny_model, tmp_path, Phi3ForCausalLM(config))
    rows = [{"prompt": f"{i:02d}", "response": "yes"} for i in range(12)]
    for tokens, packing in ((16, "packed"), (40, "separate")):
        manifest = run(tiny_model, tmp_path, rows, model=folder, generation={"max_new_tokens": tokens})
        assert manifest.metrics["packing"] == packing
    assert "beyond a window or limit of 50" in manifest.metrics["packing_reason"]


def test_a_model_that_is_missing_or_not_safetensors(tiny_model, tmp_path):
    with pytest.raises(ModelError, match="model.path: there is no folder"):
        run(tiny_model, tmp_path, GOOD, model=tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no \*.safetensors"):
        run(tiny_model, tmp_path, GOOD, model=tmp_path / "empty")
    (tmp_path / "empty" / "adapter_model.bin").touch()
    with pytest.raises(ModelError, match=r"is an adapter on a base model, not a model: merge it"):
        run(tiny_model, tmp_path, GOOD, model=tmp_path / "empty")


def test_response_tokens_end_as_the_chat_template_ends_a_turn(tiny_model):
    tokenizer = loading.load_tokenizer(Path(tiny_model))
    prompt, response = Chat(tokenizer, DataPart(path="x")).encode(single_turn("Hi", "Yes"))
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}],
        return_dict=False,
    )
    mine = [*prompt, *response]
    assert whole[: len(mine)] == mine
    assert tokenizer.decode(mine[-1:]) == "<|im_end|>"
