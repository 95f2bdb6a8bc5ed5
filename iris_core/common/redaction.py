"""Removes secrets from text that leaves a process: errors, logs, specs, reports, MLflow and Prefect.

    redact("no answer at http://me:hunter2@host")       # "no answer at http://***@host"
    carries_secret("http://host?access_token=hunter2")  # True: no setting may hold it

Hidden are:

- user and password of a URI, also percent-encoded;
- parameters with the name of a secret: in a URI, in its fragment, or as `name=value` in a text;
- tokens of a well-known form;
- the value of every environment variable with the name of a secret.

If it is not clear where a secret ends, more is hidden rather than less.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

HIDDEN = "***"
REFUSED = (
    "carries a password or token, which recipes and stores would keep: for an MLflow server set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment; for "
    "PostgreSQL PGPASSWORD, or ~/.pgpass; for the hub HF_TOKEN; a deployment gets them from Prefect Secret blocks "
    "(docs/operations.md)"
)
SHORTEST_SECRET = 6  # characters of a variable's value; shorter values, and single words, are common in texts
WORD = re.compile(r"[a-z]+|[A-Z]+|\d+|[A-Z][a-z]+")
WORKING_DIRECTORY = ("PWD", "OLDPWD")
DATABASES = ("postgresql", "mysql", "mssql")  # a user name alone is no secret there

_SCHEME = re.compile(r"(?:[A-Za-z][\w+.-]{0,30}://|https?:/)")
_CHAINED = r"(?:[A-Za-z][A-Za-z0-9+.-]*::?)*"  # simplecache::https://…, jdbc:postgresql://…
_ADDRESS = re.compile(rf"(?P<quote>[\"'`])(?={_SCHEME.pattern})(?:\\.|(?!(?P=quote))\S)*|{_SCHEME.pattern}\S*")
_HOST_FIRST = re.compile(r"(?:\[[^\]]*\]|[^/?#:@]*)(?::\d{0,5})?(?:$|/|[?#](?![^=]*@))")
_USER = re.compile(r"[^/?#:@]*(?::.*@|@(?:[^/?#]*@)?)")  # a password may hold any character
_NAME = re.compile(r"(?<=[?&;#])([^=&;?#\s\"'<>]{1,80})=")
_VALUE, _OWN_VALUE = re.compile(r"[^&\s\"'<>]*"), re.compile(r"[^&]*")
_FIELD = re.compile(
    r"(?i)\b((?:(?:access|api|auth|client|refresh|private|secret)[_-]?)?(?:token|secret)"
    r"|(?:access|api|auth|client|private|secret)[_-]?key|(?:ssl|db)?(?:password|passwd|pwd))=[^&\s'\"]+"
)
_TOKEN = re.compile(r"\b(?:hf|pnu|pnb)_[A-Za-z0-9]{16,}|(?<=Bearer )[\w.~+/=-]{8,}")
_PIECE = re.compile(r"[^\s\"'`<>]+")
MOST_ENCODINGS = 4  # nested percent-encodings

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORD = re.compile(
    r"sig|sas|pat|pass|pw|auth|authorization|jwt"
    r"|.*(?:password|passwd|passphrase|passcode|pwd|secret|token|signature|credentials?)"
    r"|.*(?:api|access|secret|private|auth|account|shared|subscription|client)key"
)
_PLAIN_KEYS = ("sort", "primary", "foreign", "partition", "group", "public")
_ABOUT_A_SECRET = ("path", "file", "dir", "sock", "type", "name", "expires", "expiry", "timeout")

# `carries_secret` as a regular expression for JSON schemas, as far as that is possible
_NAMES = ("password", "passwd", "pwd", "token", "secret", "signature", "credential", "key", "sig", "auth", "jwt")
_ANY_CASE = "|".join("".join(f"[{c}{c.upper()}]" for c in name) for name in _NAMES)
WITHOUT_SECRET = (
    rf"^(?!\s*{_CHAINED}[A-Za-z][A-Za-z0-9+.-]+:/{{1,2}}(?:[^/?#:@\[]*:(?!\d{{1,5}}(?:[/?#]|$))[^@]*@|.*[?&;#][^=&]*(?:{_ANY_CASE})[^=&]*=))"
    rf"(?!\s*{_CHAINED}(?!{'|'.join(DATABASES)})[A-Za-z][A-Za-z0-9+.-]+:/{{1,2}}[^/?#:@]*@)"
)


def redact(text: str) -> str:
    """`text` with `***` in place of its secrets. It is idempotent."""
    shown = _without_secrets(text)
    for secret in _secrets_of_environment():
        shown = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, shown)
    return shown


def carries_secret(setting: str) -> bool:
    """Whether a setting is a URI with a secret in it. A user name counts as one, except for a database."""
    uri = "".join(setting.split())
    if not re.match(_CHAINED + _SCHEME.pattern, unquote(uri)):
        return False
    if uri.lower().startswith(DATABASES):
        uri = re.sub(r"(?<=://)[^/?#:@]+@(?=[^@]*$)", "", uri)
    return _without_secrets(uri) != uri


def is_secret_name(name: str) -> bool:
    """Whether the value of a variable or parameter called `name` is a secret."""
    words = [word.lower() for word in _WORD.findall(unquote(name))]
    if not words or words[-1] in _ABOUT_A_SECRET:
        return False
    keys = [i for i, word in enumerate(words) if word == "key"]
    if any(i == 0 or words[i - 1] not in _PLAIN_KEYS for i in keys):
        return True
    return any(_SECRET_WORD.fullmatch(word) for word in words)


def _without_secrets(text: str) -> str:
    shown = _hide(text)
    return _PIECE.sub(_decoded, shown) if "%" in shown else shown


def _hide(text: str) -> str:
    shown = _ADDRESS.sub(_address, text)
    shown = _FIELD.sub(rf"\1={HIDDEN}", _hide_parameters(shown, _VALUE))
    return _TOKEN.sub(HIDDEN, shown)


def _address(found: re.Match[str]) -> str:
    """A URI without secrets. Its path or query may hold other URIs."""
    shown, rest = "", found[0]
    while scheme := _SCHEME.search(rest):
        shown, rest = shown + rest[: scheme.end()], rest[scheme.end() :]
        if not _HOST_FIRST.match(rest) and (user := _USER.match(rest)):
            shown, rest = f"{shown}{HIDDEN}@", rest[user.end() :]
    return _hide_parameters(shown + rest, _OWN_VALUE)


def _hide_parameters(text: str, values: re.Pattern[str]) -> str:
    """`text` without the values of secret parameters. A value is what `values` matches."""
    shown, done = "", 0
    for found in _NAME.finditer(text):
        if found.start() >= done and is_secret_name(found[1]):
            value = values.match(text, found.end())
            shown += text[done : found.end()] + (HIDDEN if value and value[0] else "")
            done = value.end() if value else found.end()
    return shown + text[done:]


def _decoded(found: re.Match[str]) -> str:
    """Percent-encoded text unchanged, or decoded and redacted if it hides a secret."""
    plain = found[0]
    for _ in range(MOST_ENCODINGS):
        plain = unquote(plain)
        if (shown := _hide(plain)) != plain:
            return shown
    return found[0]


def _secrets_of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and _is_secret_variable(name) and not WORD.fullmatch(value):
            yield value


@functools.cache
def _is_secret_variable(name: str) -> bool:
    return name not in WORKING_DIRECTORY and is_secret_name(name)
