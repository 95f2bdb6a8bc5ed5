"""`iris_core` is usable alone: it imports where Prefect is not installed."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys
sys.modules["prefect"] = None  # importing it fails, as if it were not installed
import iris_core
# these need vLLM, which is slow to import, and Triton, which is installed with GPUs only
elsewhere = {"iris_core.evaluation.prefix_vllm", "iris_core.modeling.kernels.logprobs_triton"}
names = [module.name for module in pkgutil.walk_packages(iris_core.__path__, "iris_core.")]
for name in names:
    if name not in elsewhere:
        importlib.import_module(name)
print(len(names))
"""


@pytest.mark.integration
def test_every_module_imports_without_prefect():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 30
