"""Runs a stage in its folder, or reuses the output that an earlier run has completed there.

A folder with a valid manifest is complete. Any other folder holds unfinished work, which the same stage resumes unit by
unit (`iris_core.store.units`). Files in `work/` serve only that and are removed once the manifest is written. Damaged
files are named in the log and written again.
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
from iris_core.common.outages import NOTIFY_EVERY_S, notify, wait_out
from iris_core.store import copies, folders
from iris_core.store.artifacts import Artifact
from iris_core.store.folders import LOCK, MANIFEST
from iris_core.store.manifest import Manifest, Outcome, Output, read_manifest
from iris_core.store.spec import Spec
from iris_core.store.units import Units
from iris_core.store.uploads import Uploading, uploading

SPEC = "spec.json"

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Spec)


def completed(folder: Path, spec: Spec) -> Manifest | None:
    """The manifest in `folder`; None unless it belongs to `spec`, no file has changed, and its records elsewhere exist.

    In a store that is kept in S3, the manifest must be there, and files that are missing here are fetched.

    Raises:
        ServiceError: the service with those records, or S3, does not answer.
    """
    if not copies.adopt_manifest(folder) or (manifest := _complete_here(folder, spec)) is None:
        return None
    if not spec.kept_elsewhere(manifest):
        return None
    return manifest.model_copy(update={"reused": True})


def run_stage(spec: S, folder: Path, work: Callable[[S, Path], Outcome]) -> Manifest:
    """Runs `work` on `spec` in `folder`, or reuses what an earlier run has completed there.

    Raises:
        StoreError: the folder belongs to another spec, or the disk is full.
        ServiceError: a service with records of the stage, or S3, does not answer.
        StageFailed: a run on another machine has completed it meanwhile, or has taken it over.
    """
    patience = spec.execution.patience
    with full_disk_errors(folder), _locked(folder), uploading(folder, patience) as copy:
        if manifest := wait_out(patience, lambda: _reusable(folder, spec, copy)):
            log.info("%s: reused %s", spec.stage, folder)
            _tidy(manifest, copy)
            return manifest
        _report_damage(folder, spec)
        folders.remove_leftovers(folder)
        if copy:
            copy.resume()
        _write_spec(folder, spec)
        remove(folder / MANIFEST)
        check_free_space(folder)
        started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
        outcome = work(spec, folder)
        folders.flush(folder)
        manifest = _manifest(spec, folder, outcome, started, time.monotonic() - clock)
        text = seal(json.loads(manifest.model_dump_json()))
        if copy:
            copy.publish(text, manifest.files)
        write_atomic(folder / MANIFEST, text)
        _tidy(manifest, copy)
    return manifest


def tidy(manifest: Manifest) -> None:
    """Removes what a killed run has left in a complete stage's folder, unless another run uses it."""
    lock = filelock.FileLock(manifest.folder / LOCK)
    with suppress(filelock.Timeout, OSError), lock.acquire(timeout=0):
        folders.tidy(manifest.folder, manifest.files)


def _reusable(folder: Path, spec: Spec, copy: Uploading | None) -> Manifest | None:
    """As `completed`. What is complete here but not in S3, as after a change of the bucket, is uploaded first."""
    if copy and not copies.adopt_manifest(folder) and (manifest := _complete_here(folder, spec)):
        copy.publish((folder / MANIFEST).read_text(encoding="utf-8"), manifest.files)
    return completed(folder, spec)


def _complete_here(folder: Path, spec: Spec) -> Manifest | None:
    """The manifest in `folder`, if it belongs to `spec` and its files are unchanged, or were fetched again from S3."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.key != spec.key():
        return None
    if (differing := _changed(manifest)) and not copies.restore(folder, manifest.files, differing):
        return None
    return manifest


def _tidy(manifest: Manifest, copy: Uploading | None) -> None:
    folders.tidy(manifest.folder, manifest.files)
    if copy:
        copy.tidy(manifest.files)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder and locks it for this process.

    The system releases the lock of a process that has died, so nobody waits for ever.
    """
    _make_output(folder)
    if (folder / LOCK).is_symlink() or (folder / LOCK).is_dir():
        remove(folder / LOCK)
    lock, timeout = filelock.FileLock(folder / LOCK), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=timeout)
        except filelock.Timeout:
            notify(f"{folder} is in use by another run: waiting for it to end")
            timeout = NOTIFY_EVERY_S
    try:
        yield
    finally:
        lock.release()


def _make_output(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"{folder} cannot be made a folder: choose another --out") from error


def _write_spec(folder: Path, spec: Spec) -> None:
    held, units = folder / SPEC, Units(folder, SPEC, spec.execution.patience)
    if units.holds(held):
        try:
            key = type(spec).model_validate_json(held.read_text(encoding="utf-8")).key()
        except ValueError:  # of another stage
            key = "unknown"
        if key != spec.key():
            raise StoreError(f"{folder} holds unfinished work of another spec ({key[:16]}): choose another --out")
    with units.writing(held) as place:
        place.write_text(spec.model_dump_json(indent=1), encoding="utf-8")


def _report_damage(folder: Path, spec: Spec) -> None:
    """Logs why a finished stage cannot be reused, and removes files that have changed."""
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
            log.warning("records of %s outside the store are gone: it runs again", folder)


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
        metrics=outcome.metrics.model_dump(mode="json"),
        started=started,
        seconds=seconds,
        folder=folder,
    )
