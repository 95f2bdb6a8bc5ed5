"""The embedded miniature of the ten benchmarks, so that they run anywhere in minutes.

`FOLDER` is laid out as `iris_core.mirror` lays out the real data sets, with the same columns, and is run through the
same task definitions. Scores on it say that the pipeline works, not how good a model is: they carry `LABEL`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "data"
LABEL = "miniature"
