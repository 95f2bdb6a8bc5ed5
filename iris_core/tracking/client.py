"""MLflow's client with repeated calls: it waits out outages.

After a lost reply it is unknown whether MLflow did what was asked. Calls that set a value can be made again. A step
that creates something (a run, a model, a version) looks for it first, is marked as `repeatable`, and is repeated as a
whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from iris_core.common.outages import notify_if_slow, wait_out
from iris_core.common.redaction import redact
from iris_core.tracking.connection import outage

P = ParamSpec("P")
R = TypeVar("R")
READS = (
    "download_artifacts",
    "get_experiment_by_name",
    "get_logged_model",
    "get_metric_history",
    "get_model_version",
    "get_model_version_by_alias",
    "get_registered_model",
    "get_run",
    "list_artifacts",
    "list_logged_model_artifacts",
    "search_logged_models",
    "search_model_versions",
    "search_registered_models",
    "search_runs",
)
SETS = (
    "finalize_logged_model",
    "log_artifact",
    "log_batch",
    "log_inputs",
    "log_model_artifact",
    "set_logged_model_tags",
    "set_model_version_tag",
    "set_registered_model_alias",
    "set_tag",
    "set_terminated",
    "update_run",
)
MAKES = (
    "create_experiment",
    "create_logged_model",
    "create_model_version",
    "create_registered_model",
    "create_run",
    "log_outputs",
)


class Client(MlflowClient):
    """MLflow's client for tracking and registry; its `READS` and `SETS` wait out outages.

    Args:
        uri: where both are.
        patience: how long an outage is waited out, in seconds.
    """

    def __init__(self, uri: str, patience: float):
        super().__init__(tracking_uri=uri, registry_uri=uri)
        self.patience = patience


def repeatable(
    step: Callable[Concatenate[Client, P], R],
) -> Callable[Concatenate[Client, P], R]:
    """A step that may be repeated after a failure: it is, until MLflow answers or the client's patience is over.

    Raises:
        ServiceError, OutageError: as `wait_out`. MLflow's other errors stay as they are.
    """

    @functools.wraps(step)
    def run(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        def once() -> R:
            try:
                return step(client, *args, **kwargs)
            except (MlflowException, requests.RequestException, SQLAlchemyError) as error:
                away = outage(client.tracking_uri, error)
                if away is None:
                    raise
                raise away from error

        return wait_out(client.patience, once)

    return run


def _notify_if_slow(
    call: Callable[Concatenate[Client, P], R],
) -> Callable[Concatenate[Client, P], R]:
    @functools.wraps(call)
    def run(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        silent = f"tracking.uri: MLflow at {redact(client.tracking_uri)} has not answered yet: waiting for it"
        with notify_if_slow(silent):
            return call(client, *args, **kwargs)

    return run


for _name in READS + SETS:
    setattr(Client, _name, repeatable(_notify_if_slow(getattr(MlflowClient, _name))))
for _name in MAKES:
    setattr(Client, _name, _notify_if_slow(getattr(MlflowClient, _name)))
