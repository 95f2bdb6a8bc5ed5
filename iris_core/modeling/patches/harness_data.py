"""Where lm-evaluation-harness's tasks find their data sets.

Why: a task names its data set as the hub does (`openai/gsm8k`) and passes neither a folder nor a cache on. `datasets`
takes such a name for a local folder if there is one below the working directory. Its cache is read from
`datasets.config` at every load; a cache of our own is shared by all runs and never finds another mirror's data.
Seen in: lm-eval 0.4.13 with datasets 5.2.0.
Can go: when `TaskManager.load` takes a folder and a cache for the data of all tasks.
Restored after the block. The working directory is the process's: no other thread may use relative paths meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def data_sets_in(mirror: Path | None, cache: Path) -> Iterator[None]:
    """Points `datasets` at a mirror and a cache, and hides its progress bars.

    Args:
        mirror: folder with the data sets, each below its name on the hub; None: they come from the hub.
        cache: folder for prepared data sets.
    """
    import datasets

    before, bars = datasets.config.HF_DATASETS_CACHE, not datasets.are_progress_bars_disabled()
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    try:
        with contextlib.chdir(mirror) if mirror is not None else contextlib.nullcontext():
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        if bars:
            datasets.enable_progress_bars()
