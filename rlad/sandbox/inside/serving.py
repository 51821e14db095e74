"""The program's side of an examination: it answers the examiner's requests after the program has run.

This side is as untrusted as the program. It decides nothing: the examiner compares values on its own side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlad.sandbox.inside.values import Channel, ChannelClosed, Codec, TransferError

_MAX_ITEMS = 1_000_000
_MUTABLE = (list, dict, set, bytearray)


class Callback:
    """A function of the tests, which the program may call."""

    def __init__(self, number: int, server: ProgramServer) -> None:
        self.number, self._server = number, server

    def __call__(self, *arguments: Any) -> Any:
        return self._server.call_examiner(self.number, arguments)


class ProgramServer:
    """Answers requests until the examiner ends."""

    def __init__(self, channel: Channel, namespace: dict[str, Any]) -> None:
        self._channel, self._namespace = channel, namespace
        self._codec = Codec(lambda number, _: Callback(number, self), Callback)

    def serve(self) -> None:
        """Answer requests until the examiner ends."""
        while True:
            try:
                self._answer(self._channel.receive())
            except ChannelClosed:
                return

    def call_examiner(self, number: int, arguments: tuple[Any, ...]) -> Any:
        """Call a function of the tests."""
        self._channel.send(["callback", number, [self._codec.encode(argument) for argument in arguments]])
        while (message := self._channel.receive())[0] not in ("returned", "raised"):
            self._answer(message)  # the function uses the program in turn
        if message[0] == "raised":
            raise RuntimeError(message[1])
        return self._codec.decode(message[1])

    def _answer(self, request: list[Any]) -> None:
        try:
            reply = self._reply(request)
        except TransferError as error:
            reply = ["error", ["TypeError"], str(error), 0]
        except Exception as error:  # noqa: BLE001 - the examiner raises it again
            names = [base.__name__ for base in type(error).__mro__]
            reply = ["error", names, str(error)[:10_000], id(type(error))]
        self._channel.send(reply)

    def _reply(self, request: list[Any]) -> list[Any]:
        action, codec = request[0], self._codec
        if action == "get":
            name = request[1]
            return ["ok", codec.encode(self._namespace[name])] if name in self._namespace else ["missing"]
        if action == "call":
            function = codec.kept(request[1])
            arguments = [codec.decode(argument) for argument in request[2]]
            keywords = {name: codec.decode(argument) for name, argument in request[3].items()}
            result = codec.encode(function(*arguments, **keywords))
            changed = [
                codec.encode(argument) if type(argument) in _MUTABLE else None
                for argument in (*arguments, *keywords.values())
            ]
            return ["ok", result, changed]
        target = codec.kept(request[1])
        arguments = [codec.decode(argument) for argument in request[2:]]
        return ["ok", codec.encode(_OPERATIONS[action](target, *arguments))]


def _items(target: Any) -> list[Any]:
    items = []
    for item in target:
        items.append(item)
        if len(items) > _MAX_ITEMS:
            raise TransferError(f"more than {_MAX_ITEMS} items")
    return items


def _set_item(target: Any, key: Any, value: Any) -> None:
    target[key] = value


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "attribute": getattr,
    "set_attribute": setattr,
    "item": lambda target, key: target[key],
    "set_item": _set_item,
    "length": len,
    "items": _items,
    "next": lambda target: [next(target)],
    "text": str,
    "repr": repr,
    "equal": lambda target, other: bool(target == other),
    "less": lambda target, other: bool(target < other),
    "is_instance": lambda target, other: isinstance(other, target),
}
