"""The credentials of this user's Prefect server: created once, kept in a file that only this user can read.

    keep("http://127.0.0.1:4200/api")    # creates them, or takes the earlier ones, so that a browser stays logged in
    client("http://127.0.0.1:4200/api")  # a client that has them

The file is a Prefect profile. In the checkout, the command `prefect` finds it by the link that `prefect.toml` names; in
other folders, by the variable PREFECT_PROFILES_PATH. Credentials are never arguments of a command: other users could
list them.
"""

from __future__ import annotations

import base64
import os
import secrets
import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from deployments.processes import AUTH_VARIABLE, home, private_folder
from iris_core.common.errors import ConfigError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

API_VARIABLE = "PREFECT_API_URL"
LINK = Path(".iris") / "profiles.toml"  # in the checkout, as in prefect.toml


def make() -> str:
    """New credentials, as `user:password`."""
    return f"iris:{secrets.token_urlsafe(24)}"


def keep(api: str) -> str:
    """Keeps credentials of the server at `api` for its clients, and returns them: the earlier ones, else new ones."""
    profile = _profile()
    credentials = profile.get(AUTH_VARIABLE) or make()
    wanted = {API_VARIABLE: api, AUTH_VARIABLE: credentials}
    if profile != wanted:
        lines = [f'{name} = "{value}"\n' for name, value in wanted.items()]
        _write_private(path(), "".join(['active = "iris"\n\n[profiles.iris]\n', *lines]))
    return credentials


def of(api: str) -> str | None:
    """The credentials for `api`: the kept ones if they are that server's, else PREFECT_API_AUTH_STRING."""
    profile = _profile()
    own = profile.get(API_VARIABLE) == api.rstrip("/")
    return profile.get(AUTH_VARIABLE) if own else os.environ.get(AUTH_VARIABLE)


def check(api: str) -> None:
    """Checks that the server of `iris up` accepts the kept credentials.

    Raises:
        ConfigError: it was started with others.
    """
    user, _, password = keep(api).partition(":")
    answer = httpx.get(f"{api}/admin/version", auth=(user, password), timeout=5)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise ConfigError(
            f"the Prefect server that runs at {api} was started with other credentials than those in {path()}, which "
            "has changed since: type `iris down`, then `iris up`"
        )


def client(api: str) -> SyncPrefectClient:
    """A client of `api` with its credentials."""
    from prefect.client.orchestration import SyncPrefectClient  # imports Prefect, which is slow

    return SyncPrefectClient(api, auth_string=of(api))


def login(prefect: str, credentials: str) -> str:
    """A link that logs a browser in; what follows the # is not sent to a server."""
    return f"{prefect}/iris-login#{base64.b64encode(credentials.encode()).decode()}"


def path() -> Path:
    """The profile's file."""
    return home() / "profiles.toml"


def link(checkout: Path) -> None:
    """Links the profile into `checkout` for the command `prefect`; does nothing if `checkout` cannot be written."""
    place = checkout / LINK
    with suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(path())


def _profile() -> dict[str, str]:
    try:
        profile = tomllib.loads(path().read_text())["profiles"]["iris"]
    except (OSError, ValueError, LookupError):
        return {}
    return {str(name): str(value) for name, value in profile.items()}


def _write_private(file: Path, text: str) -> None:
    private_folder(file.parent)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:  # mode 0600
        temporary.write(text)
    Path(temporary.name).replace(file)
