"""Secrets: hidden wherever they stand in a text, refused in settings; what is none stays as it is."""

from __future__ import annotations

import json
import re
import string
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from iris_core.common.errors import ConfigError, ServiceError
from iris_core.common.redaction import (
    DATABASES,
    WITHOUT_SECRET,
    carries_secret,
    is_secret_name,
    redact,
)
from iris_core.config import Experiment, parse_experiment

pytestmark = pytest.mark.unit

BASE: dict[str, Any] = {"name": "e", "model": {"path": "m"}, "data": {"path": "d"}}
SECRET_NAMES = [
    "access_token",
    "token",
    "key",
    "sig",
    "sslpassword",
    "password",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "AWSAccessKeyId",
    "api_key",
    "apikey",
    "ApiKey",
    "client_secret",
    "auth",
    "jwt",
    "TOKEN",
    "access%5Ftoken",
    "pwd",
    "GITHUB_PAT",
    "AZURE_STORAGE_SAS",
]
OTHER_NAMES = [
    "page",
    "max_tokens",
    "design",
    "keyword",
    "sort_key",
    "sslmode",
    "sslkey",
    "token_type",
    "author",
    "path",
    "pattern",
]
ORDINARY = [
    "sqlite:////a@b/c@d",
    "sqlite:////tmp/a@b:c/m.db",
    "http://host:5000/a@b",
    "http://[::1]:5000/a@b",
    "me@host",
    "a: b@c",
    "http://127.0.0.1:5000/#/experiments/1",
    "postgresql://h/d?sslmode=require&sslkey=/k.pem",
    "s3://b/k=3/x%20y",
    "https://h/docs#section",
    "hf://datasets/o/n@main/x",
    "git@github.com:o/n",
    "https://h?email=a@b",
    "C:/me@x",
    "https://huggingface.co/o/n/resolve/main/a%2Fb",
    "pad_token=<pad> key=1 tokens=3",
    "http://h:5000, me@x",
    "100 %",
    "%41%",
]

hosts = st.sampled_from(["host", "host:5000", "10.0.0.1", "[::1]:80", "a-b.example.com"])
schemes = st.sampled_from(["http", "https", "postgresql+psycopg2", "mysql", "s3", "ftp"])
# A letter first: what looks like a port is one. Between signs that no message holds: Hypothesis draws words of the
# source, such as "data_d", which the message about `data_dir` holds, too.
tokens = st.text(string.ascii_letters + string.digits + "-._~", min_size=3, max_size=40).map("s3{}S3".format)
passwords = st.text(string.ascii_letters + string.digits + "/@:?#%+!$*(),", min_size=3).map("s3{}S3".format)
around = st.sampled_from(["{}", "x {} y", "'{}'", '"{}"', "({})", "no answer at {}: try later", "a={}"])


@st.composite
def addresses(draw: st.DrawFn) -> tuple[str, str]:
    """A URI with a secret in it, and the secret."""
    scheme, host, token = draw(schemes), draw(hosts), draw(tokens)
    name = draw(st.sampled_from(SECRET_NAMES))
    if draw(st.booleans()):
        secret = draw(passwords)
        user = draw(st.sampled_from(["", "me", "me%40home"]))
        return f"{scheme}://{user}:{secret}@{host}/db?a=1", secret
    forms = [
        f"{host}/x?a=1&{name}={token}&b=2",
        f"{host}?{name}={token}",
        f"{host}/#{name}={token}",
    ]
    if not scheme.startswith(DATABASES):  # whose users have names
        forms.append(f"{token}@{host}/x")
    return f"{scheme}://{draw(st.sampled_from(forms))}", token


@given(addresses(), around)
def test_no_secret_of_an_address_is_shown(made: tuple[str, str], text: str) -> None:
    address, secret = made
    for written in (
        address,
        quote(address, safe=""),
        f"https://h/x?next={quote(address, safe='')}",
    ):
        shown = redact(text.format(written))
        assert secret not in shown
        assert quote(secret, safe="") not in shown
        assert redact(shown) == shown
    assert "***" in redact(address)


@given(addresses())
def test_no_setting_holds_a_secret_and_no_error_repeats_it(made: tuple[str, str]) -> None:
    address, secret = made
    assert carries_secret(address)
    for settings in (
        {"tracking": {"uri": address}},
        {"data": {"path": address}},
        {"data": {"path": [{"path": "d"}, {"path": address}]}},
        {"data": {"path": "d", "heldout_path": address}},
        {"model": {"path": address}},
        {"evaluation": {"data_dir": address}},
        {"store": address},
        {"store": f"simplecache::{address}"},
        {"training": {"lora": {"targets": [address]}}},
    ):
        with pytest.raises(ConfigError, match="carries a password or token.*set MLFLOW_") as caught:
            parse_experiment({**BASE, **settings})
        assert secret not in str(caught.value)
        with pytest.raises(ValidationError) as refused:
            Experiment.model_validate({**BASE, **settings})
        assert secret not in str(refused.value)


@given(schemes, hosts, st.sampled_from(OTHER_NAMES), tokens)
def test_ordinary_addresses_stay(scheme: str, host: str, name: str, value: str) -> None:
    address = f"{scheme}://{host}/{value}?{name}={value}#{value}"
    assert redact(address) == address
    assert not carries_secret(address)


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert " " in text or not carries_secret(text)


def test_a_database_has_users() -> None:
    assert not carries_secret("postgresql://me@host/db")
    assert redact("postgresql://me@host/db") == "postgresql://***@host/db"


@pytest.mark.parametrize(
    "text",
    [
        "url: /api/2.0/mlflow?access_token=S3cr3tS3cr3t",
        "password=S3cr3tS3cr3t host=db",
        "Illegal header value b'Bearer S3cr3tS3cr3t\\n'",
        "hf_S3cr3tS3cr3tS3cr3t is no token",
        "https:/me:S3cr3tS3cr3t@host/x",  # as pathlib writes it
        "http://a/?next=http://me:S3cr3tS3cr3t@host",
        '{"a":"http://me:S3cr3tS3cr3t@host","b":"c@d"}',
    ],
)
def test_secrets_in_other_places(text: str) -> None:
    assert "S3cr3t" not in redact(text)


def test_structure_around_an_address_stays() -> None:
    text = json.dumps({"a": "http://host:x", "b": "c@d", "e": 'http://me:p"w@host'})
    assert json.loads(redact(text)) == {"a": "http://host:x", "b": "c@d", "e": "http://***@host"}


def test_secrets_of_the_environment_are_hidden_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("SOME_TOKEN", "a1")  # too short to look for
    monkeypatch.setenv("PGPASSWORD", "postgres")  # a word
    monkeypatch.setenv("PWD", "/work/iris")
    text = "a {}, a1, /home/me/token, correct horses, postgres, /work/iris"
    assert redact(text.format("correct horse")) == text.format("***")
    assert not carries_secret("postgresql://correct horse/postgres")


def test_an_error_holds_no_secret_and_no_control_character() -> None:
    assert str(ServiceError("no answer at http://me:pw@h\x1b[2J\u202e")) == ("no answer at http://***@h\\x1b[2J\\u202e")


@pytest.mark.parametrize(
    "line", ["http://" * 1400, "%25" * 3000, "%" + "25" * 5000, "a" * 10000, "http://" + "a:" * 5000]
)
def test_a_hostile_line_is_no_trap(line: str) -> None:
    assert redact(line) == line


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


def test_prefect_is_told_in_the_schema_what_to_refuse() -> None:
    """Prefect keeps a flow run's parameters before anything of ours runs; it checks them against the schema first."""
    parts = Experiment.model_json_schema()["$defs"]
    for part, field in (("TrackingPart", "uri"), ("Source", "path"), ("DataPart", "path"), ("ModelPart", "path")):
        assert json.dumps(WITHOUT_SECRET) in json.dumps(parts[part]["properties"][field])
    for address in (
        "http://t0ken@host",
        "https://me:pw@host:80/x",
        "http://me:p/w@host",
        "http://h?access_token=t",
        "postgresql://me:pw@h/d",
        "postgresql://h/d?sslpassword=x",
        "http://h/x?X-Amz-Signature=t",
        "http://h#key=t",
        " http://me:pw@h",
        "\thttp://t0ken@host",
        "http://h?jwt=t",
        "simplecache::http://me:pw@h",
        "jdbc:mysql://me:pw@h",
    ):
        assert not re.search(WITHOUT_SECRET, address)
    for address in (
        *("postgresql://me@h/d", "sqlite:////a@b/c.db", "http://h:5000", "./iris-store", "org/name", "C:/me@x"),
        *("http://[::1]:5000", "a/key=3/*.parquet", "postgresql+psycopg2://h/d?sslmode=require"),
    ):
        assert re.search(WITHOUT_SECRET, address)
