"""Which services of `iris up` run: found by a label in the environment that each process of theirs was started with.

The label holds everything that has to be known about them, and nothing else does. So `iris down` finds what lives also
if `iris up` was killed, files were removed, or settings have changed since.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from deployments import credentials
from deployments.processes import HOST, home
from iris_core.common.strict import Strict
from iris_core.execution import supervision
from iris_core.execution.supervision import Label, labelled

SERVICES_VARIABLE = "IRIS_SERVICES"
NAMES = {"prefect", "mlflow", "worker"}


class Services(Strict):
    """What one `iris up` has started.

    Attributes:
        cache: the folder that holds its logs (IRIS_CACHE).
        checkout: the checkout that has the deployments.
        store: the store that has the runs.
        prefect_port: of the Prefect server.
        mlflow_port: of the MLflow server.
        launch_id: unique to this `iris up`.
    """

    cache: Path
    checkout: Path
    store: Path
    prefect_port: int
    mlflow_port: int
    launch_id: str

    @property
    def prefect(self) -> str:
        """Address of the Prefect UI."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def login(self) -> str:
        """The same, as a link that logs a browser in; a secret."""
        return credentials.login(self.prefect, credentials.keep(self.api))

    @property
    def api(self) -> str:
        """The value of PREFECT_API_URL."""
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        """Address of MLflow: its UI and the tracking URI."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def label(self) -> Label:
        """What everything that belongs to them is started with."""
        return Label(SERVICES_VARIABLE, self.model_dump_json())

    def processes(self) -> list[psutil.Process]:
        """Every live process that belongs to them."""
        return self.label.processes()

    def supervisors(self) -> dict[psutil.Process, str]:
        """The supervisor of each service, which lives as long as the service, with the service's name."""
        found = supervision.supervisors(self.processes())
        return {process: name for process, name in found.items() if name in NAMES}

    def flow_runs(self) -> list[psutil.Process]:
        """The processes of flow runs that the worker has started."""
        return [each for each in self.processes() if "prefect.engine" in supervision.command_line(each)]


def running() -> Services | None:
    """The services of this IRIS_CACHE, if all three live."""
    return next((each for each in of_this_cache() if set(each.supervisors().values()) == NAMES), None)


def of_this_cache() -> list[Services]:
    """Services started with this IRIS_CACHE of which a process lives."""
    return [each for each in of_this_user() if each.cache == home().parent]


def of_this_user() -> list[Services]:
    """Services of this user of which a process lives."""
    found = []
    for value in labelled(SERVICES_VARIABLE):
        with suppress(ValidationError):  # of another version
            found.append(Services.model_validate_json(value))
    return found
