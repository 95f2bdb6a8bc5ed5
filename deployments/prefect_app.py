"""Prefect's API and UI for names of this machine only: `uvicorn --factory deployments.prefect_app:create`.

Prefect itself checks credentials, CSRF tokens and origins (`processes.prefect_environment`). This app adds three
things:

- It checks the Host header. Otherwise a site could let its own name point to this machine (DNS rebinding), and its
  pages would count as Prefect's own origin.
- It forbids other pages to show Prefect in a frame.
- It serves a page that logs a browser in by a link.

It imports nothing but Prefect: `docker/compose.yaml` mounts only this file into Prefect's own image.
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

HOSTS_VARIABLE = "IRIS_PREFECT_HOSTS"  # allowed names in the Host header, separated by commas
LOGIN = """<!doctype html><title>Prefect</title><script>
const key = location.hash.slice(1);
fetch("/api/admin/version", { headers: { Authorization: `Basic ${key}` } }).then((answer) => {
  if (answer.ok) localStorage.setItem("prefect-password", key);
  location.replace("/");
});
</script>"""


def create() -> Starlette:
    """The app around Prefect's own app. Prefect's automations call the inner one directly, by another host name."""
    gc.disable()  # no garbage is looked for in what is imported here and stays: the server starts sooner
    from prefect.server.api.server import create_app

    prefect = create_app(final=True)
    gc.freeze()
    gc.enable()

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
    """Logs a browser in: stores the credentials where the UI keeps them.

    They follow the # of a link, which no server sees.
    Any page can send a browser here, so credentials that the server refuses do not replace those in the browser.
    """
    return HTMLResponse(LOGIN)


async def _refuse_frames(request: Request, respond: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await respond(request)
    response.headers["X-Frame-Options"] = "DENY"
    return response
