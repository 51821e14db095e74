"""POST requests that are retried, and their errors without secrets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

_ATTEMPTS = 3
POST_ERRORS = (httpx.HTTPError, httpx.InvalidURL)
"""Errors of `post`."""

# httpx logs every URL that it calls, and a webhook's URL is a secret.
logging.getLogger("httpx").setLevel(logging.WARNING)


def post(
    url: str,
    content: bytes,
    headers: Callable[[], Mapping[str, str]],
    *,
    timeout_s: float,
    first_wait_s: float = 1.0,
) -> None:
    """Send JSON to a URL, up to three times with growing pauses. Redirects are not followed.

    Args:
        url: The URL.
        content: JSON text.
        headers: Returns the headers of one attempt.
        timeout_s: Deadline of one attempt, in seconds.
        first_wait_s: Pause after the first attempt, in seconds. It doubles, and a random part is added.

    Raises:
        httpx.HTTPError: The last attempt failed, or the request can never be sent.
        httpx.InvalidURL: The URL is invalid.
    """
    for attempt in Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=first_wait_s, max=10, jitter=first_wait_s),
        reraise=True,
    ):
        with attempt:
            all_headers = {"Content-Type": "application/json", **headers()}
            httpx.post(url, content=content, headers=all_headers, timeout=timeout_s).raise_for_status()


def described(error: httpx.HTTPError | httpx.InvalidURL, webhook: str) -> str:
    """Describe an error without the webhook's URL, which HTTP errors contain."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"webhook {webhook} answered with status {error.response.status_code}"
    return f"webhook {webhook} does not answer: {type(error).__name__}"


def _is_transient(error: BaseException) -> bool:
    """Return False for requests that can never be sent: a line break in the token, or an unsupported URL scheme."""
    return isinstance(error, httpx.HTTPError) and not isinstance(
        error, httpx.LocalProtocolError | httpx.UnsupportedProtocol
    )
