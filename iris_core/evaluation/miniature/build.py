"""Writes the miniature's data sets from the tables in `source/`.

    python -m iris_core.evaluation.miniature.build

The output is committed; a test compares it with what this builds. The tables list the answer as the first option. Here
options are shuffled with a seed from the question: answers are spread evenly, and an edit changes no other item.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from iris_core.common.digest import text_digest
from iris_core.evaluation.benchmarks import LABEL_FILE, NLTK_FOLDER
from iris_core.evaluation.miniature import FOLDER, LABEL
from iris_core.evaluation.mirror import Rows, write_card, write_rows

SOURCE = Path(__file__).parent / "source"
LETTERS = "ABCDEFGHIJ"
IFEVAL_ARGUMENTS = (
    "num_highlights",
    "relation",
    "num_words",
    "num_placeholders",
    "prompt_to_repeat",
    "num_bullets",
    "section_spliter",
    "num_sections",
    "capital_relation",
    "capital_frequency",
    "keywords",
    "num_paragraphs",
    "language",
    "let_relation",
    "letter",
    "let_frequency",
    "end_phrase",
    "forbidden_words",
    "keyword",
    "frequency",
    "num_sentences",
    "postscript_marker",
    "first_word",
    "nth_paragraph",
)
# An English Punkt model that knows no abbreviations: enough for IFEval to count words, and written here.
PUNKT_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


def build(folder: Path) -> None:
    """Writes every data set of the miniature under `folder`."""
    names = set()
    for name, config, splits in datasets():
        write_rows(folder / name / config, splits)
        names.add(name)
    for name in names:
        write_card(folder / name)
    (folder / LABEL_FILE).write_text(LABEL + "\n", encoding="utf-8")
    punkt = folder / NLTK_FOLDER / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True, exist_ok=True)
    for file in PUNKT_FILES:
        (punkt / file).write_text("", encoding="utf-8")


def datasets() -> Iterator[tuple[str, str, dict[str, Rows]]]:
    """Name on the hub, config, and rows by split of each data set."""
    items = yaml.safe_load((SOURCE / "items.yaml").read_text(encoding="utf-8"))
    yield "openai/gsm8k", "main", _splits(items["gsm8k"], lambda q, a: {"question": q, "answer": a})
    for config, (kind, problem, solution) in items["math"].items():
        row = {"problem": problem, "level": "Level 5", "type": kind, "solution": solution}
        yield "DigitalLearningGmbH/MATH-lighteval", config, {"test": [row]}
    yield "TAUR-Lab/MuSR", "default", {split: [_musr(item)] for split, item in items["musr"].items()}
    for subject, rows in _mmlu().items():
        yield "cais/mmlu", subject, {"dev": rows[:-1], "test": rows[-1:]}
    yield "TIGER-Lab/MMLU-Pro", "default", _splits(items["mmlu_pro"], _mmlu_pro)
    for config, rows in items["gpqa"].items():
        yield "Idavidrein/gpqa", config, {"train": [_gpqa(*row) for row in rows]}
    yield "Rowan/hellaswag", "default", _splits(items["hellaswag"], _hellaswag)
    yield "allenai/winogrande", "winogrande_xl", _splits(items["winogrande"], _winogrande)
    for config, (text, target) in items["bbh"].items():
        yield "SaylorTwift/bbh", config, {"test": [{"input": text, "target": target}]}
    rows = [_ifeval(key, *item) for key, item in enumerate(items["ifeval"])]
    yield "wis-k/instruction-following-eval", "default", {"train": rows}


def _splits(splits: dict[str, list[list[Any]]], row: Any) -> dict[str, Rows]:
    return {split: [row(*item) for item in items] for split, items in splits.items()}


def _shuffled(question: str, options: list[str]) -> tuple[list[str], int]:
    """The options in an order that the question decides, and the new index of the answer, which is the first option."""
    order = list(range(len(options)))
    random.Random(text_digest(question)).shuffle(order)
    return [options[i] for i in order], order.index(0)


def _mmlu() -> dict[str, Rows]:
    subjects: dict[str, Rows] = {}
    subject = ""
    for line in (SOURCE / "mmlu.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            subject = line[2:]
            continue
        question, *options = line.split(" | ")
        choices, answer = _shuffled(question, options)
        row = {"question": question, "subject": subject, "choices": choices, "answer": answer}
        subjects.setdefault(subject, []).append(row)
    return subjects


def _mmlu_pro(category: str, question: str, answers: list[str]) -> dict[str, Any]:
    options, answer = _shuffled(question, answers)
    return {
        "question_id": int(text_digest(question)[:6], 16),
        "question": question,
        "options": options,
        "answer": LETTERS[answer],
        "answer_index": answer,
        "cot_content": "",
        "category": category,
        "src": LABEL,
    }


def _musr(item: dict[str, Any]) -> dict[str, Any]:
    choices, answer = _shuffled(item["narrative"], item["choices"])
    return {
        "narrative": item["narrative"],
        "question": item["question"],
        "choices": str(choices),
        "answer_index": answer,
        "answer_choice": choices[answer],
    }


def _gpqa(domain: str, subdomain: str, question: str, answers: list[str]) -> dict[str, Any]:
    wrong = {f"Incorrect Answer {i}": text for i, text in enumerate(answers[1:], 1)}
    return {
        "Question": question,
        "Correct Answer": answers[0],
        **wrong,
        "High-level domain": domain,
        "Subdomain": subdomain,
        "Record ID": text_digest(question)[:12],
    }


def _hellaswag(activity: str, ctx_a: str, ctx_b: str, texts: list[str]) -> dict[str, Any]:
    endings, label = _shuffled(activity, texts)
    return {
        "ind": int(text_digest(activity)[:6], 16),
        "activity_label": activity,
        "ctx_a": ctx_a,
        "ctx_b": ctx_b,
        "ctx": f"{ctx_a} {ctx_b}",
        "endings": endings,
        "source_id": LABEL,
        "split_type": "indomain",
        "label": str(label),
    }


def _winogrande(sentence: str, fits: str, other: str) -> dict[str, Any]:
    (first, second), answer = _shuffled(sentence, [fits, other])
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(answer + 1)}


def _ifeval(key: int, prompt: str, instructions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    empty = dict.fromkeys(IFEVAL_ARGUMENTS)
    return {
        "key": key,
        "prompt": prompt,
        "instruction_id_list": list(instructions),
        "kwargs": [empty | arguments for arguments in instructions.values()],
    }


if __name__ == "__main__":
    build(FOLDER)
