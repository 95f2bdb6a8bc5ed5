"""Whether the Ray cluster gives what a run's stages ask of it: found out before the first of them starts.

    check(execution_of(experiment))

Ray is loaded in a process of its own: the process of a run never does that.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading

from iris_core.common.errors import IrisError, ServiceError
from iris_core.execution.failure import abort, report
from iris_core.execution.launch import supervise
from iris_core.execution.ray_address import address
from iris_core.store.spec import Execution

ANSWER_S = 60.0  # Ray itself tries for minutes where a cluster has been there

log = logging.getLogger(__name__)


def check(execution: Execution) -> None:
    """Checks that the cluster answers, and has as many nodes and devices as are asked; once in a process.

    Raises:
        ConfigError: Ray is not installed, the address is none, or a node has too little for one engine.
        ServiceError: the cluster does not answer, refuses this process, or is too small.
    """
    address(execution.ray_address)  # says sooner what needs no Ray
    _check(execution.model_dump_json())


@functools.cache
def _check(execution: str) -> None:
    command = [sys.executable, "-m", "iris_core.execution.ray_check", execution]
    if error := supervise("ray_check", command, on_progress=log.debug, on_log=log.debug):
        raise error


def main() -> None:
    """Checks what the argument says, an `Execution` as JSON."""
    execution = Execution.model_validate_json(sys.argv[1])
    late = ServiceError(
        f"execution.ray_address: the Ray cluster gives no answer within {ANSWER_S:g} s: start it, after `ray stop` "
        "where it has crashed, or change the address"
    )
    timer = threading.Timer(ANSWER_S, abort, [late])
    timer.daemon = True
    timer.start()
    from iris_core.execution.ray_cluster import connected, share_of
    from iris_core.execution.ray_items import engine_size

    try:
        with connected(execution):
            engine_size(execution, share_of(execution))
    except IrisError as error:
        sys.exit(report(error))


if __name__ == "__main__":
    main()
