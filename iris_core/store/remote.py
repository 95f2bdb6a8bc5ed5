"""The objects of a store in S3, by s3fs (the extra `iris[s3]`).

Credentials, region and endpoint come from AWS's own variables and files (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL and so on). Writes can depend on what is there (If-None-Match, If-Match): locks are made of that.
Whatever goes wrong is a StoreError, or a ServiceError where waiting may help.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from iris_core.common import mirrors
from iris_core.common.errors import ConfigError, ServiceError, StoreError, first_line
from iris_core.common.files import make_folder, replacing

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

TRANSFERS = 4  # files at once, each in up to as many parts of 50 MiB
CLIENT = {"connect_timeout": 5, "read_timeout": 60, "retries": {"mode": "standard", "total_max_attempts": 3}}
DIGEST = "sha256"  # metadata of each uploaded file
LATER = (429, 500, 502, 503, 504)  # HTTP statuses of a server that may answer later
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and for servers other than AWS AWS_ENDPOINT_URL"
)


class Conflict(Exception):
    """A conditional write found the object in another state."""


class Missing(Exception):
    """There is no such object."""


class Found(NamedTuple):
    """An object: its content, its ETag, and its age by the server's clock, in seconds."""

    content: bytes
    tag: str
    age: float


class Remote:
    """The objects below an S3 URI; methods may be called from several threads.

    Args:
        uri: as "s3://bucket/prefix".

    Raises:
        ConfigError: s3fs is not installed.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self.bucket, _, self.prefix = uri.removeprefix(mirrors.SCHEME).partition("/")
        self.fs = _file_system()

    def check(self) -> None:
        """Checks that objects can be written, also on a condition.

        Raises:
            StoreError: the bucket is missing, refuses access, or its server ignores conditions.
            ServiceError: the server does not answer.
        """
        name = f".check-{uuid.uuid4().hex}"
        self.write(name, b"", new=True)
        try:
            self.write(name, b"", new=True)
        except Conflict:
            return
        finally:
            self.remove([name])
        raise StoreError(
            f"store: the server of {self.uri} ignores conditions of writes (If-None-Match), so nothing can be locked: "
            "use a server that has them, as AWS S3 does"
        )

    def read(self, name: str) -> Found | None:
        """The object `name`, in memory; None if there is none."""
        from fsspec.asyn import sync

        try:
            with self._errors():
                answer, content = sync(self.fs.loop, self._get, self._key(name))
        except Missing:
            return None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Found(content, answer["ETag"], (now - answer["LastModified"]).total_seconds())

    def write(self, name: str, content: bytes, new: bool = False, tag: str | None = None) -> str:
        """Writes a small object and returns its ETag.

        Args:
            name: of the object.
            content: of the object.
            new: only if there is none.
            tag: only if its ETag is this one.

        Raises:
            Conflict: the condition does not hold.
        """
        condition = {"IfNoneMatch": "*"} if new else {"IfMatch": tag} if tag else {}
        try:
            return str(self._call("put_object", name, Body=content, **condition)["ETag"])
        except Missing as error:  # with a tag
            raise Conflict from error

    def upload(self, files: Iterable[tuple[Path, str, str]]) -> None:
        """Uploads files, several at once; those that are there with this content are skipped.

        Args:
            files: each with the name of its object and the SHA-256 of its content.

        Raises:
            FileNotFoundError: a file is gone.
        """
        _at_once(self._upload, files)

    def download(self, files: Iterable[tuple[str, Path]]) -> None:
        """Downloads objects to files, several at once.

        Raises:
            Missing: an object is gone.
        """
        _at_once(self._download, files)

    def names(self, below: str) -> list[str]:
        """The names of the objects below `below`, relative to it."""
        with self._errors():
            found = self.fs.find(f"{self.bucket}/{self._key(below)}")
        start = len(f"{self.bucket}/{self._key(below)}/")
        return sorted(name[start:] for name in found if name[start:])

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; those that are not there are ignored."""
        _at_once(lambda name: self._call("delete_object", name), [(name,) for name in names])

    def _upload(self, file: Path, name: str, digest: str) -> None:
        try:
            if self._call("head_object", name).get("Metadata", {}).get(DIGEST) == digest:
                return
        except Missing:
            pass
        with self._errors():
            self.fs.put_file(str(file), f"{self.bucket}/{self._key(name)}", Metadata={DIGEST: digest})

    def _download(self, name: str, file: Path) -> None:
        make_folder(file.parent)
        with replacing(file) as temporary, self._errors():
            self.fs.get_file(f"{self.bucket}/{self._key(name)}", str(temporary))

    def _call(self, method: str, name: str, **arguments: Any) -> dict[str, Any]:
        with self._errors():
            return dict(self.fs.call_s3(method, Bucket=self.bucket, Key=self._key(name), **arguments))

    async def _get(self, key: str) -> tuple[dict[str, Any], bytes]:
        answer = await self.fs._call_s3("get_object", Bucket=self.bucket, Key=key)
        async with answer["Body"] as body:
            return answer, await body.read()

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}".strip("/")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns errors of the server and of its client into those that this module names."""
        try:
            yield
        except Exception as error:
            if (known := self._known(error)) is None:
                raise
            raise known from error

    def _known(self, error: Exception) -> Exception | None:
        """What `error` means; None for an error that does not come from the server, as of the disk."""
        from aiohttp import ClientError as ConnectionLost
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return StoreError(f"store: {self.uri} cannot be used ({first_line(error)}): {CREDENTIALS}")
        answer = error if isinstance(error, ClientError) else error.__cause__
        if isinstance(answer, ClientError):
            return self._refusal(answer)
        if isinstance(error, (BotoCoreError, ConnectionLost, ConnectionError, TimeoutError)):
            return ServiceError(f"{self.uri}: its server does not answer ({first_line(error)})")
        return None

    def _refusal(self, answer: ClientError) -> Exception:
        """What an error that the server answered means."""
        code, status = answer.response["Error"].get("Code", ""), answer.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "NoSuchBucket":
            return StoreError(f"store: there is no bucket {self.bucket!r} for {self.uri}: create it, or name another")
        if status == 404:
            return Missing()
        if status in (409, 412):
            return Conflict()
        if status in LATER or code == "SlowDown":
            return ServiceError(f"{self.uri}: its server cannot answer now ({code})")
        return StoreError(f"store: {self.uri} refuses access ({code}: {first_line(answer)}): {CREDENTIALS}")


@functools.cache
def remote(uri: str) -> Remote:
    """The objects below `uri`, with one connection for this process."""
    return Remote(uri)


def _file_system() -> Any:
    try:
        from s3fs import S3FileSystem
    except ImportError as error:
        raise ConfigError("store: an S3 store needs s3fs, which is not installed: pip install 'iris[s3]'") from error
    return S3FileSystem(
        config_kwargs=CLIENT, max_concurrency=TRANSFERS, use_listings_cache=False, skip_instance_cache=True
    )


def _at_once(step: Callable[..., object], arguments: Iterable[tuple[Any, ...]]) -> None:
    with ThreadPool(TRANSFERS) as pool:  # its threads, unlike an executor's, do not keep a failed process from ending
        pool.starmap(step, arguments, chunksize=1)
