"""Inputs and outputs of stages: a file or folder with its digest, and a model with its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from iris_core.common.digest import file_digest, folder_digest, model_digest
from iris_core.common.errors import StoreError
from iris_core.common.strict import Strict
from iris_core.store import copies


class Artifact(Strict):
    """A file or folder and the SHA-256 of its content. Only the digest enters a key."""

    path: Path
    digest: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The artifact at `path` with its digest: of weights, settings and tokenizer of a model, else of all files."""
        if path.is_file():
            return cls(path=path, digest=file_digest(path))
        is_model = any(path.glob("*.safetensors"))
        return cls(path=path, digest=model_digest(path) if is_model else folder_digest(path))

    def intact(self) -> Path:
        """`path`, to read what lies there; in a store that is kept in S3 it is fetched if it is not here.

        Raises:
            StoreError: it is gone, or no longer has the content that the digest is of.
        """
        if not self.holds():
            raise StoreError(f"{self.path} is missing or has changed since it was written: run again")
        return self.path

    def holds(self) -> bool:
        """Whether `path` still has the content of the digest, or can be fetched with it."""
        return self._is_here() or (copies.fetch(self.path) and self._is_here())

    def _is_here(self) -> bool:
        try:
            return Artifact.of(self.path).digest == self.digest
        except OSError:  # missing, or the disk cannot read it
            return False


class Policy(Strict):
    """A model that answers prompts: its folder, and its LoRA adapter if it has one."""

    model: Artifact
    adapter: Artifact | None = None
