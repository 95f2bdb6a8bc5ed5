"""The stage store: a stage turns a *spec* (JSON, content digests only) into a *folder* with a manifest.

    <root>/objects/<stage>-<key>/            one folder per spec ever run; spec.json, files, manifest.json (last)
    <root>/<experiment>/iteration-0/train    a link to the folder that holds iteration 0's training

The key is the SHA-256 of everything in the spec that decides the output. Equal work is found again, whichever
experiment did it first, and a changed setting never overwrites earlier output.

All stages depend on this sub-package. Keep three things: every write is atomic and flushed, every read is verified, and
the keys of existing specs do not change.
"""

from iris_core.store.artifacts import Artifact as Artifact
from iris_core.store.artifacts import Policy as Policy
from iris_core.store.experiment import Store as Store
from iris_core.store.manifest import Manifest as Manifest
from iris_core.store.manifest import Outcome as Outcome
from iris_core.store.manifest import named_manifest as named_manifest
from iris_core.store.manifest import read_manifest as read_manifest
from iris_core.store.manifest import require_manifest as require_manifest
from iris_core.store.recorded import Metrics as Metrics
from iris_core.store.recorded import Recorded as Recorded
from iris_core.store.spec import Execution as Execution
from iris_core.store.spec import Spec as Spec
from iris_core.store.spec import versions as versions
from iris_core.store.stages import completed as completed
from iris_core.store.stages import run_stage as run_stage
from iris_core.store.stages import tidy as tidy
