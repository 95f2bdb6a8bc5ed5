"""Lets a stage's process start sooner and smaller: without libraries it has no use for, and without collections.

- What: `sys.modules[name] = None`, so that `import name` fails and `importlib.util.find_spec(name)` returns None; and
  no garbage collection while a process imports.
- Why: where they are installed, transformers imports scikit-learn, SciPy and datasets, and accelerate imports boto3,
  all for features that these stages do not use. Collections look for garbage again and again in modules that stay.
  Each takes about a third of the CPU time until a training begins. pandas is not blocked: pyarrow fails without it.
- Since: transformers 5.19, in `generation.candidate_generator`, `loss.loss_for_object_detection` and `trainer`;
  accelerate 1.15, in `commands.config.sagemaker`.
- A name can go when these libraries import it on first use. The test fails then.
- Names are blocked for the whole process, since imports may happen at any time. So only a stage's own process calls
  `begin_imports`, before its other imports; this module may import the standard library only.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

UNUSED = ("sklearn", "scipy", "datasets", "boto3")  # where nothing is scored and nothing is tracked
UNUSED_IN_EVALUATION = ("boto3",)  # the harness has a use for the others


def begin_imports(unused: Iterable[str] = ()) -> None:
    """Begins the imports of a stage's process; `iris_core.execution.stage.main` ends them.

    Args:
        unused: top-level modules of libraries that the stage has no use for.
    """
    gc.disable()
    block_imports(unused)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected inside, where large libraries are imported, and none is looked for in them later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def block_imports(names: Iterable[str]) -> None:
    """Makes libraries appear not to be installed, in this process, unless they are imported already.

    Args:
        names: of their top-level modules.
    """
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
