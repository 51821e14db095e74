"""Credentials: their names, their known shapes, and the one function that removes them from text.

Secrets come by reference only: a configuration names an environment variable, a file or a Kubernetes secret. Code that
prints or stores text that may hold one passes it through `redact`; code that stores settings calls
`require_no_secrets`.

The shapes are those of credentials that their issuers marked with a prefix. A value without a shape is known by the
name of its setting, or by the name of the environment variable that holds it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from rlad.errors import ConfigError

REDACTED = "***"

# Names. Words are compared in upper case, with `_` between them.
_REFERENCES = re.compile(r"(?:\A|_)(?:FILE|PATH|DIR|ENV|NAME|SOCK|SOCKET|TYPE|MODE|TTL|EXPIRY|VERSION|COLUMN)\Z")
_ANYWHERE = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CLIENT_?KEY|CONNECTION_?STRING|"
    r"CONN_?STR(?:\Z|_)|WEBHOOK|BEARER|KUBECONFIG|DOCKER_AUTH"
)
_LAST_WORDS = re.compile(
    r"(?:\A|_)(?:PAT|PWD|PASS|PW|AUTH|DSN|COOKIE|COOKIES|JWT|APIKEY|NETRC|PGPASS|HTPASSWD)\d*\Z|"
    r"(?:MYSQL|SQL|DB|PG|SMTP|FTP|USER|ROOT|ADMIN|LOGIN)(?:PASS|PWD)\Z|"
    r"(?:SIGNING|ENCRYPTION|MASTER|DEPLOY|SSH|SERVICE|SERVICE_ACCOUNT|STORAGE|ACCOUNT|LICENSE|HOST|TLS|SSL|SESSION|"
    r"KAGGLE|AUTH|SHARED|HMAC)_?KEY\d*\Z|"
    r"(?:DATABASE|DB|POSTGRES|POSTGRESQL|PG|MYSQL|MARIADB|MONGO|MONGODB|REDIS|AMQP|RABBITMQ|BROKER|BACKEND|SQLALCHEMY|"
    r"JDBC|CLICKHOUSE|ELASTICSEARCH)_?(?:URL|URI)\Z|"
    r"(?:AUTH|ACCESS|API|REFRESH)_?TOKENS\Z"
)
_TOKEN = re.compile(r"(?:\A|_|[A-Z])TOKEN\d*\Z")
# Tokens of text, not of access.
_TEXT_TOKENS = re.compile(
    r"(?:BOS|EOS|PAD|UNK|SEP|CLS|MASK|STOP|END|START|IMAGE|AUDIO|VIDEO|SPECIAL|PER|EACH|FIRST|LAST|NEXT|THINK|ANSWER)_"
    r"TOKEN\d*\Z"
)
_HARMLESS_NAMES = frozenset({"PWD", "OLDPWD", "GOOGLE_APPLICATION_CREDENTIALS"})

# Values.
_SHAPES: Mapping[str, str] = {
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:.*?-----END (?:[A-Z0-9]+ )*PRIVATE "
    r"KEY(?: BLOCK)?-----|.*)",
    "Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "GitHub token": r"\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "GitLab token": r"\bgl(?:pat|ptt|dt|rt|cbt|ft|soat)-[A-Za-z0-9_-]{20,}",
    # A digit or a long word tells a key from words with hyphens.
    "API key": r"\b(?:sk|pk|rk|gsk|xai|r8|nvapi|pplx|tvly|wandb_v1)[-_](?=[A-Za-z_-]{0,60}\d|[A-Za-z0-9_-]{0,60}?"
    r"[A-Za-z0-9]{16})"
    r"[A-Za-z0-9_-]{20,}",
    "AWS access key": r"\b(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}\b",
    "Google key": r"\bAIza[A-Za-z0-9_-]{35}|\bya29\.[A-Za-z0-9_-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{20,}",
    "Slack token": r"\bx(?:ox[abeoprs]|app)-[A-Za-z0-9-]{10,}",
    "webhook": r"https://(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/webhooks|"
    r"[a-z0-9.-]+\.webhook\.office\.com)/[^\s\"'<>]+",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",
    "package registry token": r"\bnpm_[A-Za-z0-9]{30,}|\bpypi-AgE[A-Za-z0-9_-]{20,}|"
    r"\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}",
    "Vault token": r"\bhv[bsr]\.[A-Za-z0-9_-]{20,}",
    "Databricks token": r"\bdapi[0-9a-f]{32}\b",
    "SendGrid key": r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    "age key": r"\bAGE-SECRET-KEY-1[A-Z0-9]{20,}",
}
_TOKENS = re.compile("|".join(f"({shape})" for shape in _SHAPES.values()), re.DOTALL)
_KINDS = tuple(_SHAPES)

# User information of a URL: everything up to the last `@`. A password may hold any character; a port is none.
# The length of a password has a limit, so that the time for a text without blanks does not grow with its square.
_USER_INFO = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*:/{1,2})"
    r"(?:[^\s:/?#@\[\"'<>]*:(?!\d{1,5}[/?#])[^\s\"'<>]{0,4096}@|(?<=http://)[^\s:/?#@\"'<>]+@|(?<=https://)[^\s:/?#@\"'<>]+@)"
)
_PARAMETER = re.compile(r"(?P<before>[?&;](?P<name>[A-Za-z0-9_.-]+)=)(?P<value>[^\s&;#\"'<>]+)")
_SIGNATURES = frozenset({"SIG", "SIGNATURE", "KEY", "CODE", "X_AMZ_SIGNATURE", "X_AMZ_CREDENTIAL", "X_GOOG_SIGNATURE"})
_ASSIGNMENT = re.compile(
    r"(?P<before>(?<![A-Za-z0-9_.-])(?P<name>[A-Za-z][A-Za-z0-9_.-]*)(?:=|[\"']\s*[:=]\s*))"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s\"',;}&]{4,})"
)
_HEADER = re.compile(
    r"(?P<before>\bAuthorization[\"']?\s*[:=]\s*[\"']?(?:[A-Za-z]+\s+)?)\S{12,}|"
    r"(?P<bearer>\bBearer\s+)[A-Za-z0-9._~+/=-]{16,}"
)
_SHORTEST_MIXED, _SHORTEST = 8, 12


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Return whether a setting or an environment variable of this name holds a credential.

    A name that ends as the name of a reference does (`token_file`, `webhook_env`, `RAY_AUTH_TOKEN_PATH`) does not.

    Args:
        name: Name, for example `HF_TOKEN`, `DATABASE_URL` or `apiKey`. Of a dotted name the last part counts.
    """
    last = name.rpartition(".")[2]
    words = re.sub(r"[^A-Z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).upper()).strip("_")
    if words in _HARMLESS_NAMES or _REFERENCES.search(words) or _TEXT_TOKENS.search(words):
        return False
    return any(pattern.search(words) for pattern in (_ANYWHERE, _LAST_WORDS, _TOKEN))


def token_in(text: str) -> str | None:
    """Return the kind of the first credential of a known shape in a text, for example `GitHub token`; None if none."""
    found = next((match for match in _TOKENS.finditer(text) if "EXAMPLE" not in match[0]), None)
    return None if found is None or found.lastindex is None else _KINDS[found.lastindex - 1]


def secret_in(text: str) -> str | None:
    """Describe the first credential in a value, without showing it; None if there is none."""
    return _secret_in(text, _secret_variables())


def _secret_in(text: str, variables: Sequence[tuple[str, str]]) -> str | None:
    if (kind := token_in(text)) is not None:
        return f"a {kind}" if kind[0] not in "AEIOU" else f"an {kind}"
    if _USER_INFO.search(text):
        return "a URL with credentials"
    if any(_is_secret_parameter(match) for match in _PARAMETER.finditer(text)):
        return "a URL with a credential in its query"
    return next((f"the value of {name}" for name, value in variables if value in text), None)


def redact(text: str) -> str:
    """Return a text without the credentials in it. Each is replaced by `***`.

    Removed are values of environment variables with the name of a secret, tokens of known shapes, private keys, user
    information and credentials in the query of URLs, authorization headers, and values that are assigned to the name
    of a secret (`password=...`, `"api_key": "..."`).
    """
    for _, value in _secret_variables():
        text = text.replace(value, REDACTED)
    text = _TOKENS.sub(REDACTED, text)
    text = _USER_INFO.sub(rf"\g<scheme>{REDACTED}@", text)
    text = _HEADER.sub(lambda match: (match["before"] or match["bearer"]) + REDACTED, text)
    text = _PARAMETER.sub(lambda match: _without_value(match, _is_secret_parameter(match)), text)
    return _ASSIGNMENT.sub(lambda match: _without_value(match, _is_secret_assignment(match)), text)


def require_no_secrets(settings: Any, *, where: str) -> None:
    """Refuse settings that hold a credential: they are stored in the files of a run.

    Args:
        settings: Mapping, sequence or value, as read from YAML.
        where: Name of the settings, for the message.

    Raises:
        ConfigError: A setting has the name of a secret and a text as its value, or its value looks like a credential.
    """
    problems = [f"  {problem}" for problem in _secrets_of(settings, _secret_variables())]
    if problems:
        raise ConfigError("\n".join([f"{where}: settings are stored and must not hold secrets:", *problems]))


def require_no_secret_references(settings: Any, *, where: str) -> None:
    """Refuse `${oc.env:NAME}` where NAME is the name of a secret: the value would be stored instead of the reference.

    Args:
        settings: Settings whose references are not resolved yet.
        where: Name of the settings, for the message.

    Raises:
        ConfigError: A setting refers to such a variable.
    """
    variables = _secret_variables()
    problems = [
        f"  {key or 'the configuration'}: refers to the environment variable {name}; {_REMEDY}"
        for key, value in _texts(settings, "", variables)
        for name in _ENVIRONMENT.findall(value)
        if is_secret_name(name) or _secret_in(os.environ.get(name, ""), variables) is not None
    ]
    if problems:
        raise ConfigError("\n".join([f"{where}: settings are stored and must not hold secrets:", *problems]))


_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_][A-Za-z0-9_]*)")
_REMEDY = (
    "remove it. Secrets come by reference: rlad and the libraries read them from the environment of the nodes, from a "
    "file (`token_file`) or from a Kubernetes secret"
)


def _secrets_of(settings: Any, variables: Sequence[tuple[str, str]]) -> Iterator[str]:
    for place, text in _texts(settings, "", variables):
        if is_secret_name(place) and text:
            yield f"{place}: has the name of a secret; {_REMEDY}"
        elif (found := _secret_in(text, variables)) is not None:
            yield f"{redact(place) or 'the value'}: is or contains {found}; {_REMEDY}"


def _texts(settings: Any, key: str, variables: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and value of every text in nested settings. Keys that are not settings count as values."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if isinstance(name, str) and _secret_in(name, variables) is not None:
                yield key, name
            yield from _texts(value, f"{key}.{name}" if key else str(name), variables)
    elif isinstance(settings, str):
        yield key, settings
    elif isinstance(settings, list | tuple | set | frozenset):
        for value in settings:
            yield from _texts(value, key, variables)


def _secret_variables() -> list[tuple[str, str]]:
    """Return the environment variables that hold secrets. Short and simple values are left out: they are words.

    This reads the whole environment: a check of many texts calls it once.
    """
    found = [
        (name, value)
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_MIXED and is_secret_name(name) and _is_distinct(value)
    ]
    return sorted(found, key=lambda variable: -len(variable[1]))


def _is_distinct(value: str) -> bool:
    if value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value)):  # noqa: PTH110, PTH111
        return False  # the path of a file
    is_mixed = any(map(str.isalpha, value)) and any(map(str.isdigit, value))
    return is_mixed or len(value) >= _SHORTEST


def _is_secret_parameter(match: re.Match[str]) -> bool:
    name = match["name"]
    return is_secret_name(name) or re.sub(r"[^A-Z]", "_", name.upper()) in _SIGNATURES


def _is_secret_assignment(match: re.Match[str]) -> bool:
    value = match["value"].strip("\"'")
    return is_secret_name(match["name"]) and value not in ("", REDACTED) and not (value.isdecimal() and len(value) < 8)


def _without_value(match: re.Match[str], is_secret: bool) -> str:
    quote = match["value"][0] if match["value"][0] in "\"'" else ""
    return f"{match['before']}{quote}{REDACTED}{quote}" if is_secret else match[0]
