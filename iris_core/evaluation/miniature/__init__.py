"""The embedded miniature of the ten benchmarks, so that they run anywhere in minutes.

`FOLDER` has the layout that `iris_core.mirror` gives to the real data sets, with the same columns, and the same task
definitions read it. Scores on it show that the pipeline works, not how good a model is: they carry `LABEL`. Edit the
tables in `source/` and run `build`; never edit `data/`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "data"
LABEL = "miniature"
