"""Lets a stage's process start sooner and smaller: without libraries it has no use for, and without collections.

- What: `sys.modules[name] = None`, so that `import name` fails and `importlib.util.find_spec(name)` returns None; and
  no garbage collection until `iris_core.execution.stage.main`.
- Why: where they are installed, transformers imports scikit-learn, SciPy and datasets, and accelerate imports boto3,
  all for features that no stage uses. What is imported stays: to look for garbage in it, again and again while more
  is imported, takes as long as a fifth of all imports. pandas is not blocked: pyarrow fails without it.
- Since: transformers 5.19, in `generation.candidate_generator`, `loss.loss_for_object_detection` and `trainer`;
  accelerate 1.15, in `commands.config.sagemaker`.
- The names can go when these libraries import them on first use. The test fails then.
- It lasts for the whole process, since imports may happen at any time. So only a stage's own process calls it, before
  its other imports; this module may import the standard library only.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable

UNUSED = ("sklearn", "scipy", "datasets", "boto3")  # where nothing is scored and nothing is tracked
UNUSED_IN_EVALUATION = ("boto3",)  # the harness has a use for the others


def begin_imports(unused: Iterable[str] = ()) -> None:
    """Call it before a stage's other imports, in a process of its own.

    Args:
        unused: top-level modules of libraries that the stage has no use for.
    """
    gc.disable()
    block_imports(unused)


def block_imports(names: Iterable[str]) -> None:
    """Makes libraries appear not to be installed, in this process, unless they are imported already.

    Args:
        names: of their top-level modules.
    """
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
