"""URLs whose secrets stand in the environment, and messages without them."""

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, quote_plus, unquote, urlsplit

from tasks.errors import SourceError

_NAME = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_PARTS = re.compile(r"(?P<scheme>[\w+.-]+://)?(?P<user>[^/?#]*@)?(?P<rest>[^?]*)(?P<query>\?.*)?", re.DOTALL)
# What names a secret: anywhere in a parameter's name, or as the whole of it.
_TELLING_NAME = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|signature|credential|authorization|"
    r"(?:api|access|private|account)[_-]?key|\bsig|\bkey)[\w.-]*|(?<![\w.-])(?:auth|access|pass|pw|jwt)"
)
_SECRET_PARAMETER = re.compile(_TELLING_NAME, re.IGNORECASE)
# Within a value, as in ODBC's `UID=ann;PWD=…` and PostgreSQL's `-c name=…`.
_SECRET_INSIDE = re.compile(rf"({_TELLING_NAME})[\"']?\s*[=:]\s*([^;&\s]+)", re.IGNORECASE)

# Stands for a `$NAME` while a query is unquoted, so that `%24NAME`, which nothing fills in, is told from it.
_FILLED_IN = "\0"

# Schemes of objects; every other one is a database's.
_OBJECTS = frozenset({"http", "https", "s3", "gs"})

# What libraries read from the environment by themselves.
_ALWAYS_SECRET = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


@dataclass(frozen=True)
class SecretUrl:
    """A URL to use, and the way it may be shown."""

    shown: str  # as it stands in params.yaml
    url: str
    _replacements: tuple[tuple[str, str], ...]

    def scrubbed(self, text: object) -> str:
        """The text on one line, with the names of environment variables in place of their values."""
        said = str(text)
        for value, name in self._replacements:
            said = said.replace(value, name)
        return " ".join(said.split())

    def __repr__(self) -> str:
        return f"SecretUrl({self.shown!r})"


def from_environment(template: str) -> SecretUrl:
    """Put the environment's values in the place of `$NAME` and `${NAME}`.

    A value that stands for a user, a password or a parameter is quoted as URLs need it. Raises SourceError where a
    variable is not set, or where a secret is written out.
    """
    parts = _PARTS.match(template)
    if parts is None:  # never: every part may be empty
        raise SourceError("params.yaml: the collect section's url is no URL.")
    user, query = parts["user"] or "", parts["query"] or ""
    _refuse_passwords(template, user, (parts["scheme"] or "").startswith("http"))
    _refuse_parameters(template)
    values: dict[str, str] = {}

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise SourceError(
                f"params.yaml: the collect section's url names ${name}, which the environment does not have. Set it "
                f"(export {name}=…) and run it again."
            )
        values[name] = os.environ[name]
        return values[name]

    url = (
        (parts["scheme"] or "")
        + _NAME.sub(lambda match: quote(value_of(match), safe=""), user)
        + _NAME.sub(value_of, parts["rest"])
        + _NAME.sub(lambda match: quote_plus(value_of(match)), query)
    )
    # A whole URL may come from one variable; a name, where there is one, says more than stars.
    secrets = dict.fromkeys(_password_in(url), "***") | {value: f"${name}" for name, value in values.items()}
    secrets |= {os.environ[name]: f"${name}" for name in _ALWAYS_SECRET if name in os.environ}
    spelt = {
        way: name
        for value, name in secrets.items()
        if value
        for way in (value, quote(value), quote(value, safe=""), quote_plus(value))
    }
    # The longest first: one secret may be a part of another.
    return SecretUrl(template, url, tuple(sorted(spelt.items(), key=lambda pair: (-len(pair[0]), pair[0]))))


def _refuse_passwords(template: str, user: str, is_web: bool) -> None:
    name, _, password = user.removesuffix("@").partition(":")
    if _is_literal(password) or _has_password(template):
        raise SourceError(
            _written_out("a password", "user:$DATABASE_PASSWORD@host", "DATABASE_PASSWORD")
            + " Where no password is meant, write the @ as %40."
        )
    if is_web and _is_literal(name):
        raise SourceError(_written_out("a user or token", "$WEB_TOKEN@host", "WEB_TOKEN"))


def _has_password(template: str) -> bool:
    """Whether a password is written out, also one with characters that end it in a URL, such as / and #."""
    scheme, separator, rest = template.partition("://")
    if separator and scheme.lower() not in _OBJECTS and "::" not in scheme:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(template)
        except (ArgumentError, ValueError):  # a port of $NAME, for one
            return _has_password_before_at(rest)
        if url.host is None:  # a file's path, which may have a drive's colon
            return _is_literal(url.password)
        behind = f"{url.host}/{url.database or ''}"
        return _is_literal(url.password) or "@" in url.host or _has_password_before_at(behind)
    return _has_password_before_at(rest if separator else template)


def _has_password_before_at(text: str) -> bool:
    return any(_is_literal(part.partition(":")[2]) for part in text.split("@")[:-1])


def _is_literal(value: str | None) -> bool:
    return bool(value) and not _NAME.fullmatch(value or "")


def _refuse_parameters(template: str) -> None:
    for item in re.split("[?#&]", _NAME.sub(_FILLED_IN, template))[1:]:
        name, _, value = (unquote(part.replace("+", " ")) for part in item.partition("="))
        if value in ("", _FILLED_IN):
            continue
        if _SECRET_PARAMETER.fullmatch(name):
            raise SourceError(_written_out(f"the parameter {name}", f"{name}=$URL_SECRET", "URL_SECRET"))
        for found in _SECRET_INSIDE.finditer(value):
            if found[2] != _FILLED_IN:
                said = f"a secret inside of the parameter {name}"
                raise SourceError(_written_out(said, f"{name}=$URL_SECRET", "URL_SECRET"))


def _written_out(what: str, example: str, name: str) -> str:
    return (
        f"params.yaml: the collect section's url has {what} written out, and this file goes into Git. Write {example} "
        f"instead and set {name} in the environment. If the file was committed already, that secret must be changed."
    )


def _password_in(url: str) -> list[str]:
    try:
        password = urlsplit(url).password
    except ValueError:
        return []
    return [password, unquote(password)] if password else []
