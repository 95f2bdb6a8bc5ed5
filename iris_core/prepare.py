"""Stage `prepare`: resolve the model, check the annotated pairs against its tokenizer, split them.

    python -m iris_core.prepare --spec spec.json --out DIR

Everything that can be wrong with the inputs is found here, before any stage that costs time.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from iris_core import fit, models
from iris_core.chat import Chat
from iris_core.data import Pair, make_pairs, read_conversations, split_pairs, write_pairs
from iris_core.digest import model_digest
from iris_core.errors import DataError
from iris_core.lora import check_targets
from iris_core.specs import PrepareSpec
from iris_core.stage import main
from iris_core.store import Outcome, write_atomic
from iris_core.weights import check_model, check_vocabulary


def prepare(spec: PrepareSpec, out: Path) -> Outcome:
    """Checks and writes the experiment's inputs.

    Raises:
        ModelError: the model cannot be used; DataError: the data cannot.
    """
    folder = models.resolve(spec.model, spec.model_commit)
    model = check_model(folder, spec.model.trust_remote_code)
    if spec.lora is not None:
        check_targets(model, spec.lora.targets)
    tokenizer = models.load_tokenizer(folder, spec.model.trust_remote_code)
    check_vocabulary(folder, tokenizer, model)
    chat = Chat(tokenizer, spec.data, models.generation_ends(folder))
    config = models.load_config(folder, spec.model.trust_remote_code)
    proof = fit.prove(config, spec)
    pairs, dropped = _pairs(spec, chat)
    rows = fit.choose_packing(config, proof, spec, pairs)
    write_pairs(pairs, out / "pairs.parquet")
    resolved = {
        "path": str(folder), "digest": model_digest(folder), "dtype": models.resolve_dtype(spec.model.dtype),
        "name": spec.model.path, "revision": spec.model_commit, "stop_token_ids": chat.stop_token_ids,
        "packing": rows.packing,
    }  # fmt: skip
    write_atomic(out / "model.json", json.dumps(resolved, indent=1))
    train = sum(pair.split == "train" for pair in pairs)
    return Outcome(
        outputs={"pairs": out / "pairs.parquet", "model": out / "model.json"},
        metrics={
            "train_pairs": train,
            "heldout_pairs": len(pairs) - train,
            "dropped": dict(dropped),
            "warnings": [*chat.warnings, *rows.warnings],
            "packing": rows.packing,
            "packing_reason": rows.reason,
        },
    )


def _pairs(spec: PrepareSpec, chat: Chat) -> tuple[list[Pair], Counter[str]]:
    """The pairs of both splits, and how many were dropped for which reason."""
    data, heldout = spec.data, None
    if data.heldout_path is not None:
        read = map(chat.clean, read_conversations(data, data.heldout_path))
        heldout, _ = make_pairs(read, data, data.heldout_path, chat.encode)
        _check_answers(heldout, spec, data.heldout_path)
    taken = [pair.prompt_id for pair in heldout or ()]
    read = map(chat.clean, read_conversations(data, data.path))
    kept, dropped = make_pairs(read, data, data.path, chat.encode, taken)
    pairs = split_pairs(kept, heldout, data, spec.seed)
    _check_answers([pair for pair in pairs if pair.split == "heldout"], spec, data.path)
    return pairs, dropped


def _check_answers(heldout: list[Pair], spec: PrepareSpec, path: str) -> None:
    pattern = spec.data.answer_pattern
    if pattern is None:
        return
    for pair in heldout:
        if not re.search(pattern, pair.response):
            raise DataError(
                f"data.answer_pattern {pattern!r} does not match the annotated response {pair.response[:80]!r} in {path}: "
                "fix the pattern or the pair"
            )


if __name__ == "__main__":
    main(PrepareSpec, prepare)
