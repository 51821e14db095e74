"""Credentials are found by name and by shape, removed from text, and refused in settings."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlad.config import RunConfig
from rlad.config.evaluation import EvaluationSuite
from rlad.config.load import _known_keys
from rlad.config.schedule import ScheduleConfig
from rlad.config.teachers import TeacherServiceFile
from rlad.credentials import is_secret_name, redact, require_no_secrets, secret_in, token_in
from rlad.errors import ConfigError

from .planted import TOKENS, letters

VALUE = "planted-" + letters(24)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "RAY_AUTH_TOKEN",
        "GITHUB_PAT",
        "MYSQL_PWD",
        "PGPASSWORD",
        "DB_PASS",
        "DATABASE_URL",
        "REDIS_URL",
        "SQLALCHEMY_DATABASE_URI",
        "SENTRY_DSN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "WANDB_API_KEY",
        "OPENAI_API_KEY",
        "apiKey",
        "clientSecret",
        "SLACK_WEBHOOK_URL",
        "SSH_PRIVATE_KEY",
        "SIGNING_KEY",
        "REDISCLI_AUTH",
        "CI_JOB_JWT",
        "db_password",
        "token",
        "engine_args.hf_token",
        "AZURE_STORAGE_CONNECTION_STRING",
        "GOOGLE_CREDENTIALS",
        "MYSQL_ROOT_PASSWORD",
        "RAY_REDIS_PASSWORD",
        "NPM_TOKEN",
        "TWINE_PASSWORD",
        "authToken",
    ],
)
def test_name_of_a_credential_is_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "PWD",
        "OLDPWD",
        "PATH",
        "HOME",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_AUTH_MODE",
        "token_file",
        "token_env",
        "webhook_env",
        "SSH_AUTH_SOCK",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "eos_token",
        "pad_token",
        "max_tokens",
        "token_budget",
        "cache_tokens",
        "stop_token_ids",
        "answer",
        "path",
        "HF_ENDPOINT",
        "BYPASS",
        "COMPASS",
        "KEYBOARD",
        "monkey",
        "primary_key",
        "url",
    ],
)
def test_name_of_something_else_is_not_taken_for_a_credential(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("model", [RunConfig, EvaluationSuite, ScheduleConfig, TeacherServiceFile])
def test_no_setting_has_the_name_of_a_credential(model: type) -> None:
    assert not [name for name in _known_keys(model) if is_secret_name(name)]


@pytest.mark.parametrize("kind", TOKENS)
def test_token_is_found_and_removed_wherever_it_stands(kind: str) -> None:
    token = TOKENS[kind]
    assert token_in(f"x {token}.") is not None
    for text in (
        token,
        f"failed: {token}, then",
        f"'{token}'",
        f"Traceback\n  {token}\nValueError",
        f"{{'a': '{token}'}}",
    ):
        assert token not in redact(text)
        assert "***" in redact(text)
        assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "no database at postgresql+psycopg://rlad:hunter2@db:5432/x",
            "no database at postgresql+psycopg://***@db:5432/x",
        ),
        ("postgresql://u:p@ss/w:rd@db/x", "postgresql://***@db/x"),
        ("redis://:hunter2@redis:6379", "redis://***@redis:6379"),
        ("--pip git+https://abc@example.org/p.git", "--pip git+https://***@example.org/p.git"),
        ("https://user:pw@host/kk (got 1)", "https://***@host/kk (got 1)"),
        ("mysql:/u:pw@h", "mysql:/***@h"),
        ("https://x/y?a=1&token=abcdef&b=2", "https://x/y?a=1&token=***&b=2"),
        ("https://x/y?X-Amz-Signature=abcdef", "https://x/y?X-Amz-Signature=***"),
        ("host=db password=hunter2 dbname=x", "host=db password=*** dbname=x"),
        ("MYSQL_PWD='two words' mysql", "MYSQL_PWD='***' mysql"),
        ('{"api_key": "hunter2", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
    ],
)
def test_credentials_of_other_kinds_are_removed_and_the_rest_is_kept(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "no Ray cluster answers at http://10.0.0.1:8265/x@y",
        "postgresql+psycopg://rlad@db/rlad",
        "ssh://git@host/x.git",
        "step=12 policy_version=11 elapsed_s=4.2 token=7",
        "the token is missing or wrong: send `Authorization: Bearer TOKEN`",
        "set RAY_AUTH_TOKEN_PATH=/run/secrets/ray",
        "teacher.token: unknown key; did you mean `token_env`?",
        "max_tokens=4096 tokens='a b'",
        "sk-learn-pipelines-for-regression",
        "s3://bucket/prefix?region=eu-west-1&endpoint_override=host:9000",
        "sha256 " + "0123456789abcdef" * 4,
    ],
)
def test_text_without_a_credential_is_unchanged(text: str) -> None:
    assert redact(text) == text
    assert secret_in(text) is None


def test_value_of_a_secret_variable_is_removed_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "GITHUB_PAT", "MYSQL_PWD", "JUDGE_API_KEY"):
        monkeypatch.setenv(name, VALUE)
        assert redact(f"a{VALUE}b") == "a***b"
        assert secret_in(f"a{VALUE}b") == f"the value of {name}"
        monkeypatch.delenv(name)
        assert redact(f"a{VALUE}b") == f"a{VALUE}b"


def test_words_and_paths_in_secret_variables_are_not_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PGPASSWORD", "postgres")
    monkeypatch.setenv("DB_PASS", str(tmp_path))
    assert redact(f"postgres in {tmp_path}") == f"postgres in {tmp_path}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": {"api_key": "x"}}, "a.api_key: has the name of a secret"),
        ({"a": [{"b": TOKENS["GitHub token"]}]}, "a.b: is or contains a GitHub token"),
        ({"a": "https://u:p@h/"}, "a: is or contains a URL with credentials"),
        ({"a": "x" + VALUE}, "a: is or contains the value of JUDGE_API_KEY"),
        ({"a": {TOKENS["GitHub token"]: 1}}, "a: is or contains a GitHub token"),
    ],
)
def test_settings_with_a_credential_are_refused_without_showing_it(
    settings: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", VALUE)
    with pytest.raises(ConfigError, match="must not hold secrets") as refused:
        require_no_secrets(settings, where="run.yaml")
    assert message in str(refused.value)
    assert not any(secret in str(refused.value) for secret in (VALUE, TOKENS["GitHub token"], "u:p"))


def test_settings_without_text_in_secret_names_pass() -> None:
    require_no_secrets({"api_key": None, "hf_token": True, "token": "", "token_env": "HF_TOKEN"}, where="x")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:/@?&='\" \n-.eyJ0"), max_size=120))
def test_redaction_of_any_text_ends_and_is_stable(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("unit", ["a", ":", "@", "x=", "http://", "eyJ", "sk-", "-----BEGIN PRIVATE KEY-----", "'a':"])
def test_redaction_of_long_text_takes_little_time(unit: str) -> None:
    start = time.perf_counter()
    redact(unit * (50_000 // len(unit)))
    assert time.perf_counter() - start < 10
