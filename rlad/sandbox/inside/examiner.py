"""The examiner: runs the tests in a process of its own and uses the program through its channel.

The program cannot reach this process. It only answers requests, and its answers are data (see `values`).
"""

from __future__ import annotations

import builtins
import math
import os
from typing import Any

from rlad.sandbox.inside.values import Channel, ChannelClosed, Codec, TransferError

PASSED = 100
"""Exit code of an examiner whose tests have all passed."""
_FAILED = 1


class Remote:
    """An object of the program. Its operators are the program's, so it never equals a value of the tests' own."""

    number: int
    kind: str
    _examination: Examination

    def __init__(self, number: int, kind: str, examination: Examination) -> None:
        vars(self).update(number=number, kind=kind, _examination=examination)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._examination.call(self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `copy` and others look for these
            raise AttributeError(name)
        return self._examination.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._examination.ask("set_attribute", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._examination.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._examination.ask("set_item", self, key, value)

    def __len__(self) -> int:
        length = self._examination.ask("length", self)
        return length if type(length) is int else _refuse("a length")

    def __iter__(self) -> Any:
        items = self._examination.ask("items", self)
        return iter(items if type(items) is list else _refuse("items"))

    def __next__(self) -> Any:
        items = self._examination.ask("next", self)
        return items[0] if type(items) is list and len(items) == 1 else _refuse("an item")

    def __contains__(self, wanted: Any) -> bool:
        return any(item == wanted for item in self)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return False
        return self.number == other.number or self._examination.ask("equal", self, other) is True

    def __lt__(self, other: Any) -> bool:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._examination.ask("less", self, other) is True

    def __hash__(self) -> int:
        return hash(self.number)

    def __instancecheck__(self, instance: Any) -> bool:
        return self._examination.ask("is_instance", self, instance) is True

    def __str__(self) -> str:
        return _text(self._examination.ask("text", self))

    def __repr__(self) -> str:
        return _text(self._examination.ask("repr", self))


class Examination:
    """The examiner's side of the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._codec = Codec(self._remote, Remote)
        self._exceptions: dict[int, type[Exception]] = {}

    def get(self, name: str) -> tuple[bool, Any]:
        """Return whether the program has a global name, and its value."""
        reply = self._request(["get", name])
        return (False, None) if reply == ["missing"] else (True, self._value(reply))

    def call(self, target: Remote, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call a function of the program. Lists, dicts and sets that it changed are changed here too."""
        encode = self._codec.encode
        reply = self._request(
            [
                "call",
                target.number,
                [encode(argument) for argument in arguments],
                {name: encode(argument) for name, argument in keywords.items()},
            ]
        )
        result = self._value(reply)
        changed = reply[2] if len(reply) > 2 and isinstance(reply[2], list) else []
        for argument, data in zip((*arguments, *keywords.values()), changed, strict=False):
            if data is not None:
                _update(argument, self._codec.decode(data))
        return result

    def ask(self, action: str, target: Remote, *arguments: Any) -> Any:
        """Use an object of the program."""
        encoded = [self._codec.encode(argument) for argument in arguments]
        return self._value(self._request([action, target.number, *encoded]))

    def _request(self, message: list[Any]) -> list[Any]:
        """Send a request and return the answer. The examination fails if the program has ended or sends no answer."""
        try:
            self._channel.send(message)
            while True:
                reply = self._channel.receive()
                if not isinstance(reply, list) or not reply:
                    os._exit(_FAILED)
                if reply[0] != "callback":
                    return reply
                self._channel.send(self._called_back(reply))
        except (ChannelClosed, TransferError):
            os._exit(_FAILED)  # not an exception, which tests could catch

    def _called_back(self, message: list[Any]) -> list[Any]:
        """Call a function that the tests passed to the program."""
        try:
            function = self._codec.kept(message[1])
            if isinstance(function, type) or not callable(function):
                return ["raised", "the tests passed no such function"]
            result = function(*(self._codec.decode(argument) for argument in message[2]))
            return ["returned", self._codec.encode(result)]
        except Exception as error:  # noqa: BLE001 - it is raised in the program
            return ["raised", f"{type(error).__name__}: {error}"]

    def _value(self, reply: list[Any]) -> Any:
        if reply[0] == "ok" and len(reply) > 1:
            try:
                return self._codec.decode(reply[1])
            except TransferError:
                os._exit(_FAILED)
        if reply[0] == "error" and len(reply) > 3 and isinstance(reply[1], list):
            raise self._exception(reply[1], reply[3])(str(reply[2]))
        os._exit(_FAILED)

    def _exception(self, names: list[Any], number: Any) -> type[Exception]:
        """Return the program's exception class as known here, or else its nearest built-in ancestor."""
        if isinstance(number, int) and number in self._exceptions:
            return self._exceptions[number]
        return next((found for name in names if (found := _built_in_exception(name)) is not None), Exception)

    def _remote(self, number: int, kind: str) -> Any:
        ancestor = _built_in_exception(kind)
        if ancestor is None:
            return Remote(number, kind, self)
        if number not in self._exceptions:  # so that tests can catch it
            self._exceptions[number] = type(kind, (ancestor,), {})
        return self._exceptions[number]


def examine(channel: Channel, tests: dict[str, Any]) -> None:
    """Run the tests and end the process with their result.

    Args:
        channel: Channel to the program.
        tests: `calls` with the name of a function and pairs of arguments and result, or `asserts` with the names that
            are the program's and the imports of the tests.
    """
    examination = Examination(channel)
    examination.get("__name__")  # a program that ended before has failed, even if the tests do not use it
    if "calls" in tests:
        _check_calls(examination, tests["name"], tests["calls"])
    else:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(tests["imports"], "imports.py", "exec", dont_inherit=True), namespace)
        for name in tests["names"]:
            is_there, value = examination.get(name)
            if is_there:
                namespace[name] = value
        exec(compile(tests["asserts"], "tests.py", "exec", dont_inherit=True), namespace)
    os._exit(PASSED)


def _check_calls(examination: Examination, name: str, calls: list[list[Any]]) -> None:
    """Compare the results of calls. JSON has no tuples, and some data sets wrap the result in a list."""
    has_solution, solution = examination.get("Solution")
    function = None
    for arguments, expected in calls:
        if has_solution and isinstance(solution, Remote):
            try:
                function = getattr(solution(), name)
            except AttributeError:
                has_solution = False
        if not has_solution:
            function = examination.get(name)[1]
        if not isinstance(function, Remote):
            os._exit(_FAILED)
        result = _plain(function(*arguments))
        if not _equal(result, expected) and not (
            type(expected) is list and len(expected) == 1 and _equal(result, expected[0])
        ):
            os._exit(_FAILED)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _equal(given: Any, expected: Any) -> bool:
    """Compare values. Decimals may differ by 1e-6, absolute or relative."""
    if type(given) is list and type(expected) is list:
        return len(given) == len(expected) and all(map(_equal, given, expected))
    if type(given) in (int, float) and type(expected) in (int, float) and float in (type(given), type(expected)):
        # Infinity and NaN are within no distance.
        difference = abs(given - expected)
        return given == expected or (math.isfinite(difference) and difference <= 1e-6 * max(1.0, abs(expected)))
    return bool(given == expected)


def _update(old: Any, new: Any) -> None:
    """Give a mutable argument the content that the program left in it."""
    if type(old) is not type(new) or old == new:
        return
    if type(old) in (list, bytearray):
        old[:] = new
    elif type(old) in (dict, set):
        old.clear()
        old.update(new)


def _built_in_exception(name: Any) -> type[Exception] | None:
    found = getattr(builtins, name, None) if isinstance(name, str) and name else None
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _refuse(what: str) -> Any:
    raise TypeError(f"the program gave {what} of the wrong type")


def _text(value: Any) -> str:
    return value if type(value) is str else str(_refuse("a text"))
