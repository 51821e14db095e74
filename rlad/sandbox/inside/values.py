"""Values that cross between a program and its examiner, as JSON that neither side executes.

Values of built-in types cross as copies of exactly these types, also if the program made a subclass of them: an object
that claims to equal everything cannot cross. All other objects stay where they are and cross as numbered references.
"""

from __future__ import annotations

import base64
import builtins
import collections
import datetime
import decimal
import fractions
import json
import os
from collections.abc import Callable
from typing import Any

MAX_MESSAGE_BYTES = 64 << 20
_MAX_DEPTH = 200
# Built-in functions and types that tests pass to a program. None of them reaches files or other code.
_FUNCTIONS = """
abs all any ascii bin bool bytearray bytes chr complex dict divmod enumerate filter float format frozenset hash hex int
isinstance issubclass iter len list map max min next oct ord pow print range repr reversed round set slice sorted str
sum tuple type zip object
"""
_NAMED = frozenset(
    [
        *_FUNCTIONS.split(),
        *(name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)),
    ]
)
_NAMES = {id(getattr(builtins, name)): name for name in _NAMED}


class TransferError(Exception):
    """A value or message that cannot cross."""


class ChannelClosed(Exception):  # noqa: N818 - an end, not an error of the caller
    """The other side ended."""


class Channel:
    """Pair of pipes that carries JSON messages, each with its length before it."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            TransferError: It is too large.
            ChannelClosed: The other side ended.
        """
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise TransferError(f"a value of {len(data)} bytes is too large")
        view = memoryview(len(data).to_bytes(8, "big") + data)
        try:
            while view:
                view = view[os.write(self._write_fd, view) :]
        except BrokenPipeError as error:
            raise ChannelClosed from error

    def receive(self) -> Any:
        """Wait for a message.

        Raises:
            TransferError: What came is no message.
            ChannelClosed: The other side ended.
        """
        length = int.from_bytes(self._read(8), "big")
        if length > MAX_MESSAGE_BYTES:
            raise TransferError(f"a message of {length} bytes is too large")
        try:
            return json.loads(self._read(length))
        except (ValueError, RecursionError) as error:
            raise TransferError("the message is not JSON") from error

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            part = os.read(self._read_fd, min(length, 1 << 20))
            if not part:
                raise ChannelClosed
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


class Codec:
    """Encodes and decodes the values of one side."""

    def __init__(self, reference: Callable[[int, str], Any], reference_type: type[Any]) -> None:
        """
        Args:
            reference: Makes the object that stands for an object of the other side, from its number and description.
            reference_type: Type of these objects, with attributes `number` and `kind`.
        """
        self._reference, self._reference_type = reference, reference_type
        self._kept: dict[int, Any] = {}

    def kept(self, number: Any) -> Any:
        """Return an object of this side to which the other refers.

        Raises:
            TransferError: There is none with this number.
        """
        if not isinstance(number, int) or number not in self._kept:
            raise TransferError("a reference to an unknown object")
        return self._kept[number]

    def encode(self, value: Any, depth: int = 0) -> Any:
        """Return the form of a value that `json` can write."""
        if depth > _MAX_DEPTH:
            raise TransferError("the value is nested too deeply")
        if value is None or value is True or value is False:
            return value
        if isinstance(value, self._reference_type):
            number: int = vars(value)["number"]
            return ["yours", number]
        if id(value) in _NAMES:
            return ["name", _NAMES[id(value)]]
        if not isinstance(value, type):
            for kind, tag, plain in _SCALARS:
                if isinstance(value, kind):
                    return [tag, plain(value)]
            for kinds, tag, items in _CONTAINERS:
                if isinstance(value, kinds):
                    return [tag, [self.encode(item, depth + 1) for item in items(value)]]
            if isinstance(value, dict):
                tag = "counter" if isinstance(value, collections.Counter) else "dict"
                pairs = dict.items(value)
                return [tag, [[self.encode(key, depth + 1), self.encode(item, depth + 1)] for key, item in pairs]]
            array = _array(value)
            if array is not None:
                return self.encode(array, depth) if not isinstance(array, list) else array
        self._kept[id(value)] = value
        return ["mine", id(value), _description(value)]

    def decode(self, data: Any, depth: int = 0) -> Any:
        """Return the value of a form that `encode` made on the other side.

        Raises:
            TransferError: It is no such form.
        """
        if data is None or isinstance(data, bool):
            return data
        if depth > _MAX_DEPTH or not isinstance(data, list) or len(data) not in (2, 3) or not isinstance(data[0], str):
            raise TransferError("a malformed value")
        tag, content = data[0], data[1]
        try:
            if tag == "mine":
                return self._reference(int(content), str(data[2]))
            if tag == "yours":
                return self.kept(content)
            if tag == "name":
                if content not in _NAMED:
                    raise TransferError(f"an unknown name {content!r}")
                return getattr(builtins, content)
            if tag in ("dict", "counter"):
                pairs = [(self.decode(key, depth + 1), self.decode(item, depth + 1)) for key, item in content]
                return dict(pairs) if tag == "dict" else collections.Counter(dict(pairs))
            if tag in _MAKERS:
                return _MAKERS[tag]([self.decode(item, depth + 1) for item in content])
            if tag in _READERS:
                return _READERS[tag](content)
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise TransferError(f"a malformed value of kind {tag!r}: {error}") from error
        raise TransferError(f"an unknown kind of value {tag!r}")


def _text(value: str) -> str:
    return str.__str__(value)


def _read_array(content: Any) -> Any:
    import numpy as np

    kind, shape, data = content
    dtype = np.dtype(kind)
    if dtype.kind not in "biufc":
        raise TransferError(f"an array of {dtype}")
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()


def _array(value: Any) -> Any:
    """Return the form of a numpy array, the Python number of a numpy scalar, or None for anything else."""
    import sys

    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.generic):
        plain = value.item()
        return plain if type(plain) in (bool, int, float, complex, str, bytes) else None
    if type(value) is numpy.ndarray and value.dtype.kind in "biufc":
        data = base64.b64encode(numpy.ascontiguousarray(value).tobytes()).decode()
        return ["array", [value.dtype.str, list(value.shape), data]]
    return None


def _description(value: Any) -> str:
    """Return the name of an exception class's nearest built-in ancestor, or an empty text for any other object."""
    if isinstance(value, type) and issubclass(value, Exception):
        return next((base.__name__ for base in value.__mro__ if id(base) in _NAMES), "Exception")
    return ""


# Subclasses cross as their base, with the values that the base stores. `bool` is handled before.
_SCALARS: list[tuple[type, str, Callable[[Any], Any]]] = [
    (int, "int", lambda value: hex(int.__int__(value))),
    (float, "float", lambda value: float.__float__(value).hex()),
    (str, "text", _text),
    (bytes, "bytes", lambda value: base64.b64encode(bytes.__getitem__(value, slice(None))).decode()),
    (bytearray, "bytearray", lambda value: base64.b64encode(value).decode()),
    (complex, "complex", lambda value: [complex.__complex__(value).real.hex(), complex.__complex__(value).imag.hex()]),
    (range, "range", lambda value: [hex(value.start), hex(value.stop), hex(value.step)]),
    (decimal.Decimal, "decimal", decimal.Decimal.__str__),
    (fractions.Fraction, "fraction", lambda value: [hex(value.numerator), hex(value.denominator)]),
    (datetime.datetime, "datetime", datetime.datetime.isoformat),
    (datetime.date, "date", datetime.date.isoformat),
    (datetime.time, "time", datetime.time.isoformat),
    (datetime.timedelta, "timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
]
_CONTAINERS: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (list, "list", list.__iter__),
    (tuple, "tuple", tuple.__iter__),
    (set, "set", set.__iter__),
    (frozenset, "frozenset", frozenset.__iter__),
    (collections.deque, "deque", collections.deque.__iter__),
    (type({}.keys()), "keys", list),
    (type({}.values()), "values", list),
    (type({}.items()), "items", list),
]
_READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda data: int(data, 16),
    "float": float.fromhex,
    "text": _text,
    "bytes": base64.b64decode,
    "bytearray": lambda data: bytearray(base64.b64decode(data)),
    "complex": lambda data: complex(float.fromhex(data[0]), float.fromhex(data[1])),
    "range": lambda data: range(*(int(bound, 16) for bound in data)),
    "decimal": decimal.Decimal,
    "fraction": lambda data: fractions.Fraction(int(data[0], 16), int(data[1], 16)),
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda data: datetime.timedelta(*data),
    "array": _read_array,
}
_MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
}
