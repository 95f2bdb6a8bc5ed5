"""What the Ray cluster gives to a run's stages: found out before the first of them starts.

    given = check(execution_of(experiment))

Ray is loaded in a process of its own: the process of a run never does that.
"""

from __future__ import annotations

import functools
import logging
import sys
import tempfile
import threading
from pathlib import Path

from iris_core.common.errors import IrisError, ServiceError
from iris_core.common.gpus import Gpu
from iris_core.common.strict import Strict
from iris_core.execution.failure import abort, report
from iris_core.execution.launch import supervise
from iris_core.execution.ray_address import address
from iris_core.store.spec import Execution

ANSWER_S = 60.0  # Ray itself tries for minutes where a cluster has been there

log = logging.getLogger(__name__)


class Given(Strict):
    """What a stage has of each of its nodes.

    Attributes:
        amount: of devices, one process each.
        gpu: the smallest one that a node may give; None on CPUs, or where nvidia-smi shows none.
    """

    amount: int
    gpu: Gpu | None


def check(execution: Execution) -> Given:
    """Checks that the cluster answers, and has as many nodes and devices as are asked; once in a process.

    Raises:
        ConfigError: Ray is not installed, the address is none, or a node has too little for one engine.
        ServiceError: the cluster does not answer, refuses this process, or is too small.
    """
    address(execution.ray_address)  # says sooner what needs no Ray
    return _check(execution.model_dump_json())


@functools.cache
def _check(execution: str) -> Given:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.json"
        command = [sys.executable, "-m", "iris_core.execution.ray_check", execution, str(file)]
        if error := supervise("ray_check", command, on_progress=log.debug, on_log=log.debug):
            raise error
        return Given.model_validate_json(file.read_text(encoding="utf-8"))


def main() -> None:
    """Checks what the first argument says, an `Execution` as JSON, and writes a `Given` into the file of the second."""
    execution = Execution.model_validate_json(sys.argv[1])
    late = ServiceError(
        f"execution.ray_address: the Ray cluster gives no answer within {ANSWER_S:g} s: start it, after `ray stop` "
        "where it has crashed, or change the address"
    )
    timer = threading.Timer(ANSWER_S, abort, [late])
    timer.daemon = True
    timer.start()
    from iris_core.execution.ray_cluster import GPU, connected, share_of, smallest_gpu
    from iris_core.execution.ray_items import engine_size

    try:
        with connected(execution):
            share = share_of(execution)
            engine_size(execution, share)
            timer.cancel()
            gpu = smallest_gpu(share) if share.resource == GPU else None
        Path(sys.argv[2]).write_text(Given(amount=share.amount, gpu=gpu).model_dump_json(), encoding="utf-8")
    except IrisError as error:
        sys.exit(report(error))


if __name__ == "__main__":
    main()
