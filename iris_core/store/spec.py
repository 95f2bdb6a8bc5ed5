"""The spec of a stage, and its key: the SHA-256 of everything in the spec that decides the output."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field

from iris_core.common.digest import json_digest
from iris_core.common.strict import Strict
from iris_core.store.recorded import lenient, read_recorded

if TYPE_CHECKING:
    from iris_core.store.manifest import Manifest


class Execution(Strict):
    """How a stage runs, never what it computes.

    Attributes:
        launcher: "local", or "ray" for the nodes of a Ray cluster.
        nodes: machines that the stage uses.
        gpus_per_node: processes on each of them, one a GPU; None: one for each GPU, or one on the CPU.
        tensor_parallel: GPUs that hold one sampling engine together.
        ray_address: of the Ray cluster.
        tokens_per_batch: tokens in a micro-batch of training; None: as the spec's `training` says.
        batch_size: requests in a batch of the evaluation; None: the stage's default.
        patience: seconds for which an outage of a service that the stage needs is waited out.
    """

    model_config = ConfigDict(extra="ignore")  # of another version: a stage that it left unfinished is resumed

    launcher: Literal["local", "ray"] = "local"
    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int | None = Field(default=None, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    ray_address: str | None = None
    tokens_per_batch: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    patience: float = Field(default=0.0, ge=0)


class Spec(Strict):
    """Everything that determines a stage's output. Subclasses name the stage and add fields.

    `execution` says how the stage runs (devices, micro-batches), not what it produces. It is not in the key.
    """

    stage: ClassVar[str]
    unkeyed: ClassVar[dict[str, Any]] = {"execution": True}  # fields that decide no output
    has_ranks: ClassVar[bool] = False  # whether several processes work on it together, as torchrun starts them
    versions: dict[str, str] = Field(default_factory=dict)
    execution: Execution = Execution()

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The spec that `manifest` records. Fields that its version did not have yet are None.

        Raises:
            StoreError: it does not fit this class.
        """
        return read_recorded(lenient(cls), manifest.spec, manifest.folder, "spec")

    def key(self) -> str:
        """SHA-256 of the canonical spec, artifacts by digest."""
        content = self.model_dump(mode="json", exclude=self.unkeyed)
        return json_digest({"stage": self.stage, **_without_paths(content)})

    def kept_elsewhere(self, manifest: Manifest) -> bool:
        """Whether what the stage wrote outside its folder according to `manifest`, as an MLflow run, still exists."""
        return True


def versions(*packages: str) -> dict[str, str]:
    """The versions of `packages`, without those that are not installed; for the lineage and the key."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"path", "digest"}:
            return value["digest"]
        return {name: _without_paths(item) for name, item in value.items()}
    return [_without_paths(item) for item in value] if isinstance(value, list) else value
