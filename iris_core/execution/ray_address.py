"""The address of the Ray cluster that a recipe names. Nothing here imports Ray: the process of a run never does."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec

from iris_core.common.errors import ConfigError, ServiceError

ANSWER_S = 5.0
AUTO = "auto"  # the cluster that this machine belongs to


def address(given: str | None) -> str:
    """The address in the recipe, else in RAY_ADDRESS, else "auto"; a server listens there.

    Args:
        given: `execution.ray_address`.

    Raises:
        ConfigError: Ray is not installed, or this is no address of a cluster.
        ServiceError: nothing listens at the address.
    """
    if find_spec("ray") is None:
        raise ConfigError("execution.launcher: Ray is not installed: install `iris[ray]`, or set the launcher to local")
    found = given or os.environ.get("RAY_ADDRESS") or AUTO
    if found != AUTO:
        _check_listens(found)
    return found


def _check_listens(found: str) -> None:
    """Ray itself tries for minutes, and then ends the process."""
    host, _, port = found.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ConfigError(
            f"execution.ray_address: {found} is no address of a Ray cluster: give `host:6379`, or `auto` on one of its "
            "machines"
        )
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ServiceError(
            f"execution.ray_address: no Ray cluster answers at {found} ({error}): start it, or change the address"
        ) from error
