"""Parameters that Prefect refuses by the schema, before it stores anything: secrets, and lists of copies or nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema

from flows.compare import compare
from flows.iris import iris

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


def parameters(**settings: object) -> dict[str, Any]:
    base = {"name": "e", "model": {"path": "m"}, "data": {"path": "d"}}
    return {"experiment": {**base, **settings}}


def stored(client: SyncPrefectClient) -> str:
    return json.dumps([run.parameters for run in client.read_flow_runs()])


def test_a_secret_in_parameters_is_not_stored() -> None:
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            client.create_flow(iris),
            "secrets",
            parameter_openapi_schema=parameter_schema(iris).model_dump(),
            enforce_parameter_schema=True,
        )
        taken = parameters(tracking={"uri": "http://host:5000"}, data={"path": [{"path": "a"}]})
        client.create_flow_run_from_deployment(deployment, parameters=taken)
        for settings in (
            {"tracking": {"uri": "http://S3cr3t@host:5000"}},
            {"tracking": {"uri": "postgresql://me:S3cr3t@host/db"}},
            {"tracking": {"uri": "http://host?access_token=S3cr3t"}},
            {"data": {"path": [{"path": "https://S3cr3t@host/x"}]}},
            {"data": {"path": "https://me:S3cr3t@host/x"}},
            {"model": {"path": "https://me:S3/cr3t@host/x"}},
            {"store": "s3://me:S3cr3t@bucket"},
        ):
            with pytest.raises(PrefectHTTPStatusError, match="409"):
                client.create_flow_run_from_deployment(deployment, parameters=parameters(**settings))
        assert "http://host:5000" in stored(client)
        assert "S3" not in stored(client)


def test_a_comparison_takes_each_objective_and_seed_once() -> None:
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            client.create_flow(compare),
            "members",
            parameter_openapi_schema=parameter_schema(compare).model_dump(),
            enforce_parameter_schema=True,
        )
        base = parameters()
        client.create_flow_run_from_deployment(deployment, parameters={**base, "objectives": ["sft"], "seeds": [1, 2]})
        for refused in ({"objectives": ["sft", "iris", "sft"]}, {"objectives": []}, {"seeds": [1, 1]}, {"seeds": []}):
            with pytest.raises(PrefectHTTPStatusError, match="409"):
                client.create_flow_run_from_deployment(deployment, parameters={**base, **refused})
