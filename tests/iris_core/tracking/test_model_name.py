"""Whether a registered model can take versions, at a real server and in a real database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from iris_core import tracking
from iris_core.common.errors import ConfigError, ServiceError
from iris_core.tracking.client import Client
from iris_core.tracking.model_name import check_registered_model
from iris_core.tracking.registry import KEY, get_or_create_registered_model
from tests.lossy_proxy import LossyProxy, lossy_proxy

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('names')}/mlflow.db"


@pytest.fixture
def proxy(mlflow_server: str) -> Iterator[LossyProxy]:
    with lossy_proxy(mlflow_server) as proxy:
        yield proxy


class Page(ThreadingHTTPServer):
    """Answers everything with the same page, as a proxy that wants a login does."""

    body = b""


class Answer(BaseHTTPRequestHandler):
    server: Page

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[Page]:
    with Page(("127.0.0.1", 0), Answer) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        yield page
        page.shutdown()


def fill(uri: str) -> Client:
    """One name of each kind; made once for each place."""
    client = tracking.connect(uri, 0.0)
    if not client.search_registered_models("name = 'foreign'"):
        run = client.create_run("0").info.run_id
        source = f"runs:/{run}/model"
        client.create_registered_model("empty")
        get_or_create_registered_model(client, "ours")
        client.create_model_version("ours", source, run)
        for name, tags in (("foreign", {}), ("mixed", {KEY: "a"})):
            client.create_registered_model(name)
            client.create_model_version(name, source, run, tags)
        made = client.create_registered_model("emptied")
        version = client.create_model_version(made.name, source, run)
        client.delete_model_version(made.name, version.version)
        client.register_prompt("prompt", "Say {{what}}")
    return client


@pytest.mark.parametrize("served", [True, False])
def test_only_what_can_take_versions_is_accepted(mlflow_server, database, served):
    uri = mlflow_server if served else database
    fill(uri)
    for name in ("nothing", "empty", "emptied", "ours", "mixed"):
        check_registered_model(uri, name)
    with pytest.raises(
        ConfigError,
        match=r"tracking\.registered_model: 'prompt' at .* is a prompt: give another name",
    ):
        check_registered_model(uri, "prompt")
    with pytest.raises(ConfigError, match="'foreign' at .* has versions that IRIS did not make: give another"):
        check_registered_model(uri, "foreign")


def test_nothing_is_made_by_asking(mlflow_server, tmp_path):
    check_registered_model(mlflow_server, "nothing")
    client = tracking.connect(mlflow_server)
    assert not client.search_registered_models("name = 'nothing'")
    check_registered_model(f"sqlite:///{tmp_path}/mlflow.db", "nothing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "what"), [("GET", "read"), ("POST", "change")])
def test_a_model_that_may_not_be_written_is_named(proxy, method, what):
    fill(proxy.uri)
    proxy.refuses = lambda request: 403 if request.method == method else None
    message = f"may not {what} 'ours' at .* .403.: ask for the permission EDIT, or give another name"
    with pytest.raises(ConfigError, match=message):
        check_registered_model(proxy.uri, "ours")
    proxy.refuses = lambda request: 502
    with pytest.raises(ServiceError, match="status 502"):
        check_registered_model(proxy.uri, "ours")


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"", b"{}", b"[]", b'{"run": {'])
def test_a_page_in_the_place_of_mlflow_is_named(page, body):
    page.body = body
    uri = f"http://127.0.0.1:{page.server_port}"
    for ask in (lambda: check_registered_model(uri, "ours"), lambda: tracking.holds(uri, ["a"])):
        with pytest.raises(ServiceError, match=r"is not a working MLflow server .status 200.: start"):
            ask()
