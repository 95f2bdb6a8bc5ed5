"""The worker runs this project's deployments unchanged, and no code that server, deployment or run name."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from deployments.worker import CHECKOUT, OwnRun, own_entrypoint
from iris_core.common.errors import ConfigError

pytestmark = pytest.mark.unit
STEP = "prefect.deployments.steps.set_working_directory"
SHELL = {"prefect.deployments.steps.run_shell_script": {"script": "touch /tmp/x"}}


def deployment(**changed: Any) -> DeploymentResponse:
    """`full-loop` as the server has it, with changes."""
    own: dict[str, Any] = {
        "id": uuid.uuid4(),
        "name": "full-loop",
        "flow_id": uuid.uuid4(),
        "entrypoint": "flows/iris.py:iris",
        "pull_steps": [{STEP: {"directory": str(CHECKOUT)}}],
        "job_variables": {},
    }
    return DeploymentResponse.model_validate({**own, **changed})


def run(**changed: Any) -> FlowRun:
    return FlowRun.model_validate({"name": "brave-hare", "flow_id": uuid.uuid4(), **changed})


def test_own_deployment_runs() -> None:
    assert own_entrypoint(run(), deployment()) == "flows/iris.py:iris"
    compare = deployment(name="objectives", entrypoint="flows/compare.py:compare")
    assert own_entrypoint(run(), compare) == "flows/compare.py:compare"


def test_checkout_may_be_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(CHECKOUT)
    steps = [{STEP: {"directory": str(tmp_path / "here")}}]
    assert own_entrypoint(run(), deployment(pull_steps=steps)) == "flows/iris.py:iris"


@pytest.mark.parametrize(
    "changed",
    [
        {"pull_steps": [SHELL]},
        {"pull_steps": [{STEP: {"directory": str(CHECKOUT)}}, SHELL]},
        {"pull_steps": [{STEP: {"directory": "/tmp"}}]},
        {"pull_steps": [{STEP: {"directory": str(CHECKOUT)}, **SHELL}]},
        {"pull_steps": [{STEP: {"directory": str(CHECKOUT), "requires": "evil"}}]},
        {"pull_steps": []},
        {"pull_steps": None},
        {"entrypoint": "flows/compare.py:compare"},
        {"entrypoint": "/tmp/evil.py:iris"},
        {"entrypoint": None},
        {"name": "other"},
        {"job_variables": {"command": "touch /tmp/x"}},
        {"job_variables": {"env": {"PYTHONPATH": "/tmp"}}},
        {"job_variables": {"working_dir": "/tmp"}},
    ],
)
def test_changed_deployment_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"prefect\.yaml"):
        own_entrypoint(run(), deployment(**changed))


def test_run_without_a_deployment_or_with_job_variables_is_refused() -> None:
    with pytest.raises(ConfigError, match="brave-hare: it has no deployment"):
        own_entrypoint(run(), None)
    with pytest.raises(ConfigError, match="full-loop: it sets job variables"):
        own_entrypoint(run(job_variables={"env": {"A": "b"}}), deployment())


def test_credentials_may_come_from_secret_blocks() -> None:
    env = {"env": {"MLFLOW_TRACKING_TOKEN": "{{ prefect.blocks.secret.mlflow-token }}"}}
    assert own_entrypoint(run(), deployment(job_variables=env)) == "flows/iris.py:iris"
    how = OwnRun(command=None, env={"MLFLOW_TRACKING_TOKEN": "of the block", "LD_PRELOAD": "/tmp/x"})
    how.prepare_for_flow_run(run(), deployment(job_variables=env))
    assert how.env["MLFLOW_TRACKING_TOKEN"] == "of the block"
    assert how.env.get("LD_PRELOAD") == os.environ.get("LD_PRELOAD")


def test_settings_of_the_pool_are_ignored() -> None:
    how = OwnRun(command="touch /tmp/x", env={"PYTHONPATH": "/tmp"}, working_dir="/tmp")
    how.prepare_for_flow_run(run(), deployment())
    assert how.command is not None
    assert how.command.endswith("-m prefect.engine")
    assert how.working_dir == CHECKOUT
    assert how.env.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    assert how.env["PREFECT__FLOW_ENTRYPOINT"] == "flows/iris.py:iris"
