"""Stage `prepare`: resolve the model, check the annotated pairs against its tokenizer, split them.

    python -m iris_core.prepare --spec spec.json --out DIR

What is wrong with the inputs is found here, before any stage that takes long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from iris_core.modeling.patches.imports import UNUSED, begin_imports

if __name__ == "__main__":
    begin_imports(UNUSED)

from iris_core.common.digest import model_digest
from iris_core.common.errors import ConfigError, DataError
from iris_core.common.files import write_atomic
from iris_core.data.chat import Chat
from iris_core.data.conversations import Conversation
from iris_core.data.judged import PATTERNED, judgeable, prove
from iris_core.data.pairs import KNOWN, Pair, Usable, make_pairs, split_pairs, unseen, write_pairs
from iris_core.data.sources import Reading, SourcePath, label, read_conversations, source_digest
from iris_core.evaluation.heldout import checkable
from iris_core.execution import devices
from iris_core.execution.stage import main
from iris_core.modeling import fit, loading
from iris_core.modeling.lora import check_targets
from iris_core.modeling.sizes import trained_sizes
from iris_core.modeling.weights import check_model, check_vocabulary
from iris_core.pipeline.metrics import PrepareMetrics
from iris_core.pipeline.specs import PrepareSpec, ResolvedModel
from iris_core.pipeline.verifier import check_unchanged, check_unwritten, command_files
from iris_core.store import Outcome
from iris_core.verification.kinds import check as check_verifier


def prepare(spec: PrepareSpec, out: Path) -> Outcome:
    """Checks and writes the experiment's inputs.

    Raises:
        ConfigError: the dtype would be chosen for another kind of machine, or the verifier lacks something.
        ModelError: the model cannot be used; DataError: the data cannot; VerificationError: the verifier cannot.
    """
    check_verifier(spec.verification)
    check_unchanged(spec.verification, spec.verifier_digest)
    _check_dtype(spec)
    folder = loading.resolve(spec.model, spec.model_commit)
    model = check_model(folder, spec.model.trust_remote_code)
    if spec.lora is not None:
        check_targets(model, spec.lora.targets)
    tokenizer = loading.load_tokenizer(folder, spec.model.trust_remote_code)
    check_vocabulary(folder, tokenizer, model)
    chat = Chat(tokenizer, spec.data, loading.generation_ends(folder))
    config = loading.load_config(folder, spec.model.trust_remote_code)
    proof = fit.prove(config, spec)
    pairs, found = _pairs(spec, chat)
    rows = fit.choose_packing(config, proof, spec, pairs)
    unproved = _prove(pairs, spec)
    write_pairs(pairs, out / "pairs.parquet")
    resolved = ResolvedModel(
        path=folder,
        digest=model_digest(folder),
        dtype=loading.resolve_dtype(spec.model.dtype),
        name=spec.model.path,
        revision=spec.model_commit,
        stop_token_ids=chat.stop_token_ids,
        packing=rows.packing,
    )
    write_atomic(out / "model.json", resolved.model_dump_json(indent=1))
    train = [pair for pair in pairs if pair.split == "train"]
    annotated = sum(pair.annotated for pair in train)
    return Outcome(
        outputs={"pairs": out / "pairs.parquet", "model": out / "model.json"},
        metrics=PrepareMetrics(
            train_pairs=annotated,
            heldout_pairs=len(pairs) - len(train),
            prompts=len(train) - annotated,
            format=", ".join(dict.fromkeys(source.format for source in found.sources)),
            sources=found.sources,
            dropped=dict(found.dropped),
            packing=rows.packing,
            packing_reason=rows.reason,
            sizes=trained_sizes(config, spec.lora, spec.model.trust_remote_code),
            warnings=[*found.warnings, *rows.warnings, *unproved],
        ),
    )


def _check_dtype(spec: PrepareSpec) -> None:
    """Refuses to choose a dtype on a machine without a GPU for machines with some."""
    here = spec.execution.model_copy(update={"launcher": "local"})
    if spec.model.dtype == "auto" and not devices.on_gpus(here) and devices.on_gpus(spec.execution):
        raise ConfigError(
            "model.dtype: auto is chosen on the machine of the run, which shows no GPU, but the Ray cluster has GPUs: "
            "write bfloat16, or float32 for GPUs without it"
        )


def _pairs(spec: PrepareSpec, chat: Chat) -> tuple[list[Pair], Reading]:
    """The pairs of both splits, and what was read in all: sources, dropped pairs, warnings."""
    data, heldout, near = spec.data, None, dict[str, str]()
    readings = []
    if data.heldout_path is not None:
        usable, reading = _usable(spec, chat, "data.heldout_path", data.heldout_path, spec.heldout_digest)
        heldout, near = [each.pair for each in usable], {each.pair.prompt_id: each.near for each in usable}
        readings.append(reading)
    usable, reading = _usable(
        spec, chat, "data.path", data.path, spec.data_digest, dict.fromkeys(near.values(), "heldout")
    )
    readings.append(reading)
    pairs = split_pairs(usable, heldout, data, spec.seed, label("data.path", data.path))
    unchecked = _check_answers([pair for pair in pairs if pair.split == "heldout"], spec)
    if data.prompts_path is not None:
        near |= {each.pair.prompt_id: each.near for each in usable}
        known = {near[pair.prompt_id]: pair.split for pair in pairs}
        usable, reading = _usable(
            spec, chat, "data.prompts_path", data.prompts_path, spec.prompts_digest, known, annotated=False
        )
        readings.append(reading)
        pairs = [*pairs, *_with_reference([each.pair for each in usable], spec, reading)]
    return pairs, Reading(
        sources=[source for each in readings for source in each.sources],
        dropped=sum((each.dropped for each in readings), Counter()),
        warnings=[*chat.warnings, *(warning for each in readings for warning in each.warnings), *unchecked],
    )


def _usable(
    spec: PrepareSpec,
    chat: Chat,
    setting: str,
    path: SourcePath,
    digest: str | None,
    known: Mapping[str, str] = MappingProxyType({}),
    annotated: bool = True,
) -> tuple[list[Usable], Reading]:
    """The usable pairs in `path`, and what was read and dropped.

    Args:
        spec: the stage's.
        chat: renders and tokenizes conversations.
        setting: the setting that holds `path`, for messages.
        path: where the pairs are.
        digest: of what they held when the spec was written.
        known: the splits of prompts that are known, by their digest (`Usable.near`): of held-out ones, which must not
            be trained on, and of annotated ones where these are prompts without annotation.
        annotated: whether they are annotated.

    Raises:
        DataError: the data changed, or a pair cannot be used.
    """
    data, where = spec.data, label(setting, path)
    if source_digest(setting, data, path) != digest:
        raise DataError(f"{where} has changed since this spec was written: run again")
    reading = read_conversations(data, path, spec.seed, setting, annotated)
    rows: Iterable[list[Conversation]] = ([chat.clean(each) for each in row] for row in reading.rows)
    if not annotated:
        rows, known = unseen(rows, known, reading.dropped), {}
    usable = make_pairs(rows, data, where, chat.encode, reading.dropped, known)
    faults = Counter({reason: count for reason, count in reading.dropped.items() if reason != KNOWN})
    dropped = faults.total()
    if dropped > len(usable):
        reasons = ", ".join(f"{reason} {count}" for reason, count in faults.most_common())
        reading.warnings.append(f"{where}: {dropped} of {dropped + len(usable)} pairs were dropped: {reasons}")
    return usable, reading


def _with_reference(prompts: list[Pair], spec: PrepareSpec, reading: Reading) -> list[Pair]:
    """Those of `prompts` without annotation that the verifier can judge; the others are counted in `reading`.

    Raises:
        DataError: there is none.
    """
    kept = judgeable(prompts, spec.verification, spec.data.answer_pattern)
    if len(kept) == len(prompts):
        return kept
    kind, column = spec.verification.kind, spec.data.reference_column
    what = f"have nothing in the column {column!r}, which verification.kind {kind} compares with"
    if not kept:
        raise DataError(f"data.prompts_path: all {len(prompts)} prompts {what}: fill it in, or leave prompts_path out")
    missing = len(prompts) - len(kept)
    reading.dropped["no reference"] += missing
    reading.warnings.append(f"data.prompts_path: {missing} of {len(prompts)} prompts {what}: they are left out")
    return kept


def _prove(pairs: list[Pair], spec: PrepareSpec) -> list[str]:
    """Warnings from the proof of the verifier, where there is one (`iris_core.data.judged.prove`)."""
    if not spec.verification.judges:
        return []
    named = command_files(spec.verification)
    found = prove(pairs, spec.verification, spec.data.answer_pattern)
    check_unwritten(spec.verification, named)
    return found


def _check_answers(heldout: list[Pair], spec: PrepareSpec) -> list[str]:
    """A warning if exact match leaves out held-out pairs, for example turns of a conversation without an answer.

    Where a column holds references, answers are compared with those.

    Raises:
        DataError: it would leave out all of them.
    """
    pattern = spec.data.answer_pattern
    patterned = not spec.verification.judges or spec.verification.kind in PATTERNED
    if pattern is None or not patterned or spec.data.reference_column is not None:
        return []
    checked = {pair.prompt_id for pair in checkable(pattern, heldout)}
    others = [pair for pair in heldout if pair.prompt_id not in checked]
    if not others:
        return []
    return [
        f"data.answer_pattern: exact match leaves out {len(others)} of {len(heldout)} held-out pairs, because "
        f"{pattern!r} is not found in their annotated answers, such as {others[0].response[-80:]!r}"
    ]


if __name__ == "__main__":
    main(PrepareSpec, prepare)
