"""Sessions of signed-in users, CSRF tokens, and the limit on failed sign-ins.

Sessions are kept in memory: a restart of the console signs all users out.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.console.problems import ForbiddenError, NotSignedInError, TooManyAttemptsError
from pipelines.console.users import User, Users

_LIFETIME_S = 12 * 3600.0
_MAX_SESSIONS = 1000
# Failed sign-ins of one address within the window after which it has to wait.
_MAX_FAILURES, _WINDOW_S = 10, 60.0
_MAX_ADDRESSES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Message that the next page shows once.

    Attributes:
        text: The message.
        is_error: Whether an action was refused.
    """

    text: str
    is_error: bool


@dataclass(slots=True, kw_only=True)
class Session:
    """Session of a user.

    Attributes:
        user: The user.
        csrf: Token that every form of this session carries.
        expires_at: End of the session, seconds since the epoch.
        notices: Messages for the next page.
    """

    user: User
    csrf: str
    expires_at: float
    notices: deque[Notice] = field(default_factory=lambda: deque(maxlen=5))

    def require_csrf(self, given: str) -> None:
        """Refuse a form without the token of this session.

        Raises:
            ForbiddenError: The token is missing or wrong.
        """
        if not hmac.compare_digest(given.encode(), self.csrf.encode()):
            raise ForbiddenError("the form has no valid CSRF token: load the page again and repeat the action")


class Sessions:
    """Sessions by their id. Threads may share it."""

    def __init__(self, users: Users, *, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            users: Users that may sign in.
            clock: Present time, seconds since the epoch.
        """
        self._users, self._clock, self._lock = users, clock, threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._secret = secrets.token_bytes(32)

    def sign_in(self, token: str, *, client: str) -> tuple[str, Session]:
        """Start a session for the user with a token, and return its id.

        Args:
            token: Token that the user entered.
            client: Address of the user.

        Raises:
            NotSignedInError: No user has this token.
            TooManyAttemptsError: Too many sign-ins from this address failed within the last minute.
        """
        with self._lock:
            now = self._clock()
            failures = self._failures.get(client, deque())
            if len(failures) == _MAX_FAILURES and now - failures[0] < _WINDOW_S:
                raise TooManyAttemptsError(
                    f"{_MAX_FAILURES} sign-ins from {client} failed within {_WINDOW_S:g} s: wait a minute and try again"
                )
            user = self._users.by_token(token)
            if user is None:
                self._record_failure(client, now)
                raise NotSignedInError("no user of this console has this token")
            identifier = secrets.token_urlsafe(32)
            session = Session(user=user, csrf=secrets.token_urlsafe(32), expires_at=now + _LIFETIME_S)
            self._sessions[identifier] = session
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
            return identifier, session

    def _record_failure(self, client: str, now: float) -> None:
        self._failures.setdefault(client, deque(maxlen=_MAX_FAILURES)).append(now)
        self._failures.move_to_end(client)
        while len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def get(self, identifier: str | None) -> Session | None:
        """Return the session of an id; None if it does not exist or has expired."""
        with self._lock:
            session = self._sessions.get(identifier or "")
            if session is not None and session.expires_at <= self._clock():
                del self._sessions[identifier or ""]
                return None
            return session

    def sign_out(self, identifier: str | None) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(identifier or "", None)

    def new_nonce(self) -> str:
        """Return a random value for the cookie of the sign-in page."""
        return secrets.token_urlsafe(32)

    def sign_in_csrf(self, nonce: str) -> str:
        """Return the CSRF token of the sign-in form for the browser with this cookie."""
        return hmac.new(self._secret, nonce.encode(), "sha256").hexdigest()

    def require_sign_in_csrf(self, nonce: str | None, given: str) -> None:
        """Refuse a sign-in form that this console did not send to this browser.

        Raises:
            ForbiddenError: The token is missing or wrong.
        """
        if nonce is None or not hmac.compare_digest(given.encode(), self.sign_in_csrf(nonce).encode()):
            raise ForbiddenError("the form has no valid CSRF token: load the sign-in page again")
