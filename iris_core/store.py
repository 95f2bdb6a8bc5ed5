"""The stage store: a stage turns a *spec* (JSON, content digests only) into a *folder* that a manifest completes.

    <root>/objects/<stage>-<key>/            one folder per spec ever run; spec.json, files, manifest.json (last)
    <root>/<experiment>/iteration-0/train    a link to the folder that holds iteration 0's training

The key is the SHA-256 of everything in the spec that decides the output, so equal work is found again wherever it was
asked for first, and a changed setting never overwrites what an earlier one produced. A folder with a valid manifest
is complete; anything else is unfinished work which the same stage resumes, unit by unit (`iris_core.units`). What a stage
keeps only to be resumable lies in `work/` and goes when the manifest is in place. What is damaged is named and redone.
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import filelock
from pydantic import BaseModel, ConfigDict, Field

from iris_core import folders
from iris_core.digest import file_digest, folder_digest, json_digest, model_digest
from iris_core.disk import check_free_space, full_disk_errors
from iris_core.errors import StoreError
from iris_core.files import make_folder, read_sealed, remove, replacing, seal, write_atomic
from iris_core.folders import LOCK
from iris_core.outages import SAY_EVERY_S, tell, wait_out
from iris_core.units import Units

MANIFEST = "manifest.json"
SPEC = "spec.json"
IDENTITY = "experiment.json"
OBJECTS = "objects"  # the folder of all stages' folders

log = logging.getLogger(__name__)


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Artifact(Strict):
    """A file or folder and the SHA-256 of its content. Only the digest enters a key."""

    path: Path
    digest: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The artifact at `path`, digested now: a model folder by its weights and settings, others whole."""
        if path.is_file():
            return cls(path=path, digest=file_digest(path))
        is_model = any(path.glob("*.safetensors"))
        return cls(path=path, digest=model_digest(path) if is_model else folder_digest(path))

    def holds(self) -> bool:
        """Whether what lies at `path` still has the content that the digest is of."""
        try:
            return Artifact.of(self.path).digest == self.digest
        except OSError:  # nothing lies there, or the disk does not give it back
            return False

    def intact(self) -> Path:
        """`path`, to read what lies there.

        Raises:
            StoreError: it is gone, or no longer has the content that the digest is of.
        """
        if not self.holds():
            raise StoreError(
                f"{self.path} is missing or has changed since it was written: run again"
            )
        return self.path


class Policy(Strict):
    """What answers prompts: a model folder, and the LoRA adapter on it where there is one."""

    model: Artifact
    adapter: Artifact | None = None


class Spec(Strict):
    """Everything that determines a stage's output. Subclasses name the stage and add fields.

    `execution` says how, never what (devices, micro-batches, threads): it stays out of the key.
    """

    stage: ClassVar[str]
    versions: dict[str, str] = Field(default_factory=dict)
    execution: dict[str, Any] = Field(default_factory=dict)

    def key(self) -> str:
        """SHA-256 of the canonical spec, artifacts by digest."""
        content = self.model_dump(mode="json", exclude={"execution"})
        return json_digest({"stage": self.stage, **_without_paths(content)})

    @property
    def patience(self) -> float:
        """How long an outage of a service that the stage needs is waited out, in seconds."""
        return float(self.execution.get("patience", 0.0))

    def kept_elsewhere(self, manifest: Manifest) -> bool:
        """Whether what `manifest` says was made outside the stage's folder is still there."""
        return True


S = TypeVar("S", bound=Spec)


class Output(Strict):
    """A named file or folder inside a stage's folder."""

    path: str
    digest: str


class Manifest(Strict):
    """What a finished stage produced. `folder` is where it was read from and is not stored.

    Attributes:
        files: size and SHA-256 of each file, by name relative to the folder.
        outputs: the parts that later stages take.
        metrics: numbers and small values worth showing.
        seconds: wall time of the run that completed it.
    """

    stage: str
    key: str
    spec: dict[str, Any]
    files: dict[str, tuple[int, str]]
    outputs: dict[str, Output]
    metrics: dict[str, Any]
    started: datetime.datetime
    seconds: float
    folder: Path = Field(default=Path(), exclude=True)
    reused: bool = Field(default=False, exclude=True)

    def artifact(self, name: str) -> Artifact:
        """The output called `name`, as the next stage's input."""
        output = self.outputs[name]
        return Artifact(path=self.folder / output.path, digest=output.digest)


class Outcome(Strict):
    """What a stage's work returns: its outputs by name, its metrics."""

    outputs: dict[str, Path]
    metrics: dict[str, Any] = Field(default_factory=dict)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of those of `packages` that are installed, for the lineage and the key."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete stage folder, or None if there is none or it is damaged."""
    content = read_sealed(folder / MANIFEST)
    try:
        return None if content is None else Manifest(**content, folder=folder)
    except ValueError:
        return None


def require_manifest(folder: Path) -> Manifest:
    """The manifest of a stage folder that was complete.

    Raises:
        StoreError: it is gone.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"the stage output in {folder} is gone: run again to make it")
    return manifest


def named_manifest(file: Artifact) -> Manifest:
    """The manifest that another stage has named.

    Raises:
        StoreError: it is gone or is another one.
    """
    return require_manifest(file.intact().parent)


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
        if manifest := wait_out(spec.patience, lambda: completed(folder, spec)):
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


class Store:
    """One experiment's view of the store.

    Args:
        root: the store's folder; created if missing.
        experiment: the experiment's name, a folder under `root`.
    """

    def __init__(self, root: Path, experiment: str):
        self.root = root.expanduser().absolute()
        self.home = self.root / experiment

    def check(self) -> None:
        """Makes the experiment's folder, and that of the stages, which may be a link to another disk.

        Raises:
            StoreError: one cannot be written, or its disk is full.
        """
        for folder in (self.home, self.root / OBJECTS):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            except OSError as error:
                raise StoreError(
                    f"store: cannot write {folder} ({error.strerror}): set `store` to another folder"
                ) from error
            check_free_space(folder)

    def claim(self, identity: dict[str, str]) -> None:
        """Marks the experiment's folder as belonging to `identity` (model and data digests, say).

        A damaged mark proves nothing, and stages are found by content: it is written again, and links that may be of another
        experiment go.

        Raises:
            StoreError: the folder holds an experiment with another identity, or cannot be written.
        """
        self.check()
        mark = self.home / IDENTITY
        held = read_sealed(mark)
        if held is None and os.path.lexists(mark):
            log.warning("%s is damaged: this run's model and data are noted instead", mark)
            self.unlink()
        held = identity if held is None else held
        for name in identity:
            if held.get(name) != identity[name]:
                raise StoreError(
                    f"store: {self.home} holds another experiment ({name} was {held.get(name)}, now {identity[name]}): "
                    "give this one another `name`, or set `store` to another folder"
                )
        write_atomic(mark, seal(identity))

    def folder(self, spec: Spec) -> Path:
        """Where the output of `spec` lies or will lie."""
        return self.root / OBJECTS / f"{spec.stage}-{spec.key()[:16]}"

    def link(self, place: str, folder: Path) -> None:
        """Makes `<experiment>/<place>` (as in "iteration-0/train") lead to a stage's folder."""
        link = self.home / place
        make_folder(link.parent)
        with replacing(link) as temporary:
            target = os.path.relpath(folder, link.parent)
            temporary.symlink_to(target, target_is_directory=True)

    def unlink(self) -> None:
        """Removes the links to stages of the initial model and of iterations; what they lead to stays."""
        for link in self.home.glob("i*/*"):  # initial/… and iteration-…/…
            if link.is_symlink():
                link.unlink()

    def manifest(self, place: str) -> Manifest | None:
        """The manifest at `<experiment>/<place>`, or None if that stage has not completed."""
        return read_manifest(Path(os.path.realpath(self.home / place)))


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
            raise StoreError(
                f"{folder} holds unfinished work of another spec ({key[:16]}): choose another --out"
            )
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


def _manifest(
    spec: Spec, folder: Path, outcome: Outcome, started: datetime.datetime, seconds: float
) -> Manifest:
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
    )  # fmt: skip


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"path", "digest"}:
            return value["digest"]
        return {name: _without_paths(item) for name, item in value.items()}
    return [_without_paths(item) for item in value] if isinstance(value, list) else value
