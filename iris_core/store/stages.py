"""Runs a stage's work in its folder, or takes what a run before has finished there.

A folder with a valid manifest is complete; anything else is unfinished work which the same stage resumes, unit by unit
(`iris_core.store.units`). What a stage keeps only to be resumable lies in `work/` and goes when the manifest is in place.
What is damaged is named and redone.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import filelock

from iris_core.common.digest import file_digest
from iris_core.common.disk import check_free_space, full_disk_errors
from iris_core.common.errors import StoreError
from iris_core.common.files import remove, seal, write_atomic
from iris_core.common.outages import SAY_EVERY_S, tell, wait_out
from iris_core.store import folders
from iris_core.store.artifacts import Artifact
from iris_core.store.folders import LOCK
from iris_core.store.manifest import MANIFEST, Manifest, Outcome, Output, read_manifest
from iris_core.store.spec import Spec
from iris_core.store.units import Units

SPEC = "spec.json"

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Spec)


def completed(folder: Path, spec: Spec) -> Manifest | None:
    """The manifest of `folder` if it belongs to `spec`, no file has changed, and what lies elsewhere is still there.

    Raises:
        ServiceError: what keeps the rest does not answer.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.key != spec.key() or _changed(manifest):
        return None
    if not spec.kept_elsewhere(manifest):
        return None
    return manifest.model_copy(update={"reused": True})


def run_stage(spec: S, folder: Path, work: Callable[[S, Path], Outcome]) -> Manifest:
    """Runs `work` on `spec` in `folder`, or takes what a run before has finished there.

    Raises:
        StoreError: the folder belongs to another spec, or the disk is full.
        ServiceError: what keeps the rest does not answer.
    """
    with full_disk_errors(folder), _locked(folder):
        if manifest := wait_out(spec.execution.patience, lambda: completed(folder, spec)):
            log.info("%s: reused %s", spec.stage, folder)
            folders.tidy(folder, manifest.files)
            return manifest
        _name_damage(folder, spec)
        _claim_folder(folder, spec)
        remove(folder / MANIFEST)
        folders.remove_leftovers(folder)
        check_free_space(folder)
        started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
        outcome = work(spec, folder)
        folders.flush(folder)
        manifest = _manifest(spec, folder, outcome, started, time.monotonic() - clock)
        write_atomic(folder / MANIFEST, seal(json.loads(manifest.model_dump_json())))
        folders.tidy(folder, manifest.files)
    return manifest


def tidy(manifest: Manifest) -> None:
    """Removes what a kill has left in a complete stage's folder, unless a run works there."""
    lock = filelock.FileLock(manifest.folder / LOCK)
    with suppress(filelock.Timeout, OSError), lock.acquire(timeout=0):
        folders.tidy(manifest.folder, manifest.files)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps it for this process.

    The system frees a lock whose holder has died, so waiting for one has an end.
    """
    _make_output(folder)
    if (folder / LOCK).is_symlink() or (folder / LOCK).is_dir():
        remove(folder / LOCK)
    lock, timeout = filelock.FileLock(folder / LOCK), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=timeout)
        except filelock.Timeout:
            tell(f"{folder} is in use by another run: waiting for it to end")
            timeout = SAY_EVERY_S
    try:
        yield
    finally:
        lock.release()


def _make_output(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"{folder} cannot be made a folder: choose another --out") from error


def _claim_folder(folder: Path, spec: Spec) -> None:
    held, units = folder / SPEC, Units(folder, SPEC)
    if units.holds(held):
        try:
            key = type(spec).model_validate_json(held.read_text(encoding="utf-8")).key()
        except ValueError:  # of another stage
            key = "unknown"
        if key != spec.key():
            raise StoreError(f"{folder} holds unfinished work of another spec ({key[:16]}): choose another --out")
    with units.writing(held) as place:
        place.write_text(spec.model_dump_json(indent=1), encoding="utf-8")


def _name_damage(folder: Path, spec: Spec) -> None:
    """Names what keeps a finished stage from being reused, and removes files that have changed."""
    manifest = read_manifest(folder)
    if manifest is None:
        if os.path.lexists(folder / MANIFEST):
            log.warning("%s is damaged: %s runs again", folder / MANIFEST, spec.stage)
    elif manifest.key == spec.key():
        changed = _changed(manifest)
        for path in changed:
            log.warning("%s has changed since it was written: %s runs again", path, spec.stage)
            remove(path)
        if not changed:
            log.warning("what %s recorded elsewhere is gone: it runs again", folder)


def _changed(manifest: Manifest) -> list[Path]:
    outputs = [output.path for output in manifest.outputs.values()]
    return folders.changed(manifest.folder, manifest.files, outputs)


def _manifest(spec: Spec, folder: Path, outcome: Outcome, started: datetime.datetime, seconds: float) -> Manifest:
    kept = [name for name in folders.kept_files(folder) if name != MANIFEST]
    return Manifest(
        stage=spec.stage,
        key=spec.key(),
        spec=spec.model_dump(mode="json"),
        files={name: ((folder / name).stat().st_size, file_digest(folder / name)) for name in kept},
        outputs={
            name: Output(path=str(path.relative_to(folder)), digest=Artifact.of(path).digest)
            for name, path in outcome.outputs.items()
        },
        metrics=outcome.metrics,
        started=started,
        seconds=seconds,
        folder=folder,
    )
