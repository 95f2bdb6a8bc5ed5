"""lm-evaluation-harness without a progress bar for each task.

Why: it shows a bar while it builds the requests of a task, which no argument turns off; MMLU alone has 57 tasks.
Seen in: lm-eval 0.4.13.
Can go: when `lm_eval.evaluator.evaluate` has an argument for it, or `lm_eval.api.task` no longer uses `tqdm`.
Restored after the block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden_task_bars() -> Iterator[None]:
    """Tasks build their requests inside without a progress bar."""
    import lm_eval.api.task as tasks

    original = tasks.tqdm
    tasks.tqdm = functools.partial(original, disable=True)
    try:
        yield
    finally:
        tasks.tqdm = original
