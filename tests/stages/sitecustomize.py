"""With this folder on PYTHONPATH, `python -m iris_core.slow` runs the test stage `slow.py` like a real stage."""

from __future__ import annotations

from pathlib import Path

import iris_core

iris_core.__path__.append(str(Path(__file__).parent))
