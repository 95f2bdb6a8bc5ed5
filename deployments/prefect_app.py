"""Prefect's API and UI for names of this machine only: `uvicorn --factory deployments.prefect_app:create`.

Prefect itself checks credentials, CSRF tokens and origins (`processes.prefect_environment`). Two things it does not do: it
answers to every Host header, so that a page whose name is made to point here counts as its own origin; and it lets other
pages show it in a frame. A page that logs a browser in by a link is added.

Needs nothing but Prefect: `docker/compose.yaml` gives this file alone to Prefect's own image.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prefect.server.api.server import create_app
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

HOSTS_VARIABLE = "IRIS_PREFECT_HOSTS"  # names that the server answers to, separated by commas
LOGIN = """<!doctype html><title>Prefect</title><script>
const key = location.hash.slice(1);
fetch("/api/admin/version", { headers: { Authorization: `Basic ${key}` } }).then((answer) => {
  if (answer.ok) localStorage.setItem("prefect-password", key);
  location.replace("/");
});
</script>"""


def create() -> Starlette:
    """The app, around Prefect's own: the server's automations call that by another name, without a network."""
    prefect = create_app(final=True)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with prefect.router.lifespan_context(prefect):
            yield

    hosts = os.environ.get(HOSTS_VARIABLE, "127.0.0.1,localhost").split(",")
    return Starlette(
        routes=[Route("/iris-login", _log_in), Mount("/", prefect)],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(BaseHTTPMiddleware, dispatch=_refuse_frames),
        ],
        lifespan=lifespan,
    )


async def _log_in(request: Request) -> Response:
    """The UI keeps credentials in the browser's storage; they come behind the # of a link, which no server sees.

    Any page can send a browser here: what the server refuses does not replace what the browser has.
    """
    return HTMLResponse(LOGIN)


async def _refuse_frames(request: Request, respond: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await respond(request)
    response.headers["X-Frame-Options"] = "DENY"
    return response
