"""The cache folder: models, data sets, logs of services, and whatever else can be downloaded or made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The absolute path of `$IRIS_CACHE`, or of `~/.cache/iris` where the variable is unset or empty."""
    return Path(os.environ.get("IRIS_CACHE") or "~/.cache/iris").expanduser().absolute()
