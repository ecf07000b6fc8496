"""The gob codec: one value of a known struct per payload, decoded to a flat list and encoded from nested tuples.

A StructCodec numbers the fields of a struct depth-first; the decoded values are a list in that order:

    Request{ImgInfo{name typ width height data} w h ...}  values = [name, typ, width, height, data, w, h, ...]

    decode       | definitions | n | id | field deltas and values |
                 '-- key of the plan cache: a peer sends the same definitions with every frame
    plan         by the peer's field number: (operation, index in values, argument)
    decode_head  decodes the beginning of a payload, up to the length of its []byte
    encode       takes the values nested as the structs are

RULES: fields are matched by name. An unknown field is skipped; a known name with another type is refused. Any input
gives a value or GobError, in time and memory linear in its length, and calls no code that it names. The content of a
[]byte is never copied; a struct has at most one.
"""

from collections.abc import Sequence
from typing import Any

from workers.wire import types
from workers.wire.numbers import (
    Buffer,
    GobError,
    float_of,
    from_zigzag,
    put_float,
    put_int,
    put_text,
    put_uint,
    take_int,
    take_long,
    take_uint,
)
from workers.wire.skip import Skipper, TypeDefinitions, check_skippable
from workers.wire.types import BOOL, BYTES, FLOAT, INT, STRING, UINT, StructType

MAX_PLANS = 64

_SKIP, _INNER = -1, 0
_ZERO: dict[int, Any] = {BOOL: False, INT: 0, UINT: 0, FLOAT: 0.0, BYTES: b"", STRING: ""}

DecodeStep = tuple[int, int, Any]
DecodePlan = tuple[DecodeStep, ...]
DecodePlans = tuple[TypeDefinitions, dict[int, DecodePlan]]


class DataBeyondHead(GobError):
    """The content of a []byte, payload[start:stop], is not within the bytes at hand."""

    def __init__(self, start: int, stop: int, present: int) -> None:
        super().__init__(f"a text of {stop - start} bytes where {present - start} are left")
        self.start, self.stop = start, stop


class StructCodec:
    """Encodes and decodes one struct; keeps its definitions, its zero values and a plan for each peer's definitions."""

    def __init__(self, struct: StructType) -> None:
        self.struct = struct
        self.definitions = types.write_definitions(struct)
        self.zeros: list[Any] = []
        self.steps = self._number(struct)
        identity = bytearray()
        put_int(identity, struct.type_id)
        self.identity = bytes(identity)
        self.fields = _fields(struct)
        self.plan_cache: dict[bytes, DecodePlans] = {}
        # The definitions of the last payload, usually also of the next, and their plans.
        self._latest: tuple[bytes, DecodePlans] = (b"", ({}, {}))

    def _number(self, struct: StructType) -> DecodePlan:
        steps: list[DecodeStep] = []
        for _, kind in struct.fields:
            if isinstance(kind, StructType):
                steps.append((_INNER, 0, self._number(kind)))
            else:
                steps.append((kind, len(self.zeros), None))
                self.zeros.append(_ZERO[kind])
        return tuple(steps)

    def decode(self, payload: Buffer) -> list[Any]:
        """The values in `payload`; a []byte among them is a memoryview of it. Raises GobError."""
        values = self.zeros.copy()
        try:
            at, plan, definitions = self._begin(payload, len(payload))
            at = _fill(plan, payload, at, values, Skipper(payload, definitions))
        except IndexError:
            raise GobError("ends in the middle of a value") from None
        if at != len(payload):
            raise GobError("bytes after the value")
        return values

    def decode_head(self, head: Buffer, length: int) -> tuple[list[Any], int, int] | None:
        """Decode the beginning `head` of a payload of `length` bytes: the values in front of the []byte that reaches
        beyond `head`, and where its content begins and ends. None when `head` contains no such place or an error."""
        values = self.zeros.copy()
        try:
            at, plan, definitions = self._begin(head, length)
            _fill(plan, head, at, values, Skipper(head, definitions))
        except DataBeyondHead as data:
            return values, data.start, data.stop
        except (GobError, IndexError):
            pass  # decode() reports the error, if there is one, when the payload is complete
        return None

    def _begin(self, head: Buffer, length: int) -> tuple[int, DecodePlan, TypeDefinitions]:
        """The position of the first field, the plan for the fields, and the definitions."""
        key, known = self._latest
        at = start = len(key)
        if bytes(head[:start]) != key:
            at = start = 0
        while True:
            size, body = take_uint(head, at)
            if size > length - body:
                raise GobError(f"a part of {size} bytes where {length - body} are left")
            type_id, inside = take_int(head, body)
            if type_id >= 0:
                break
            at = body + size
            if at > types.MAX_DEFINITIONS:
                raise GobError(f"type definitions over {types.MAX_DEFINITIONS} bytes")
        if at != len(key) or not start:
            key = bytes(head[:at])
            self._latest = key, known = key, self.plan_cache.get(key) or self._read_definitions(key)
        definitions, plans = known
        plan = plans.get(type_id)
        if plan is None:
            plan = plans[type_id] = _plan(self.struct, self.steps, type_id, definitions)
        if body + size != length:
            raise GobError("the value does not end where its payload ends")
        return inside, plan, definitions

    def _read_definitions(self, key: bytes) -> DecodePlans:
        definitions: TypeDefinitions = {}
        at = 0
        while at < len(key):
            size, at = take_uint(key, at)
            stop = at + size
            negative, at = take_int(key, at)
            if -negative in definitions:
                raise GobError(f"type {-negative} defined twice")
            if len(definitions) >= types.MAX_TYPES:
                raise GobError(f"more than {types.MAX_TYPES} types")
            definitions[-negative] = types.read_definition(key, at, stop)
            at = stop
        if len(self.plan_cache) >= MAX_PLANS:  # drop the oldest: always new definitions cost time, not memory
            del self.plan_cache[next(iter(self.plan_cache))]
        self.plan_cache[key] = (definitions, {})
        return self.plan_cache[key]

    def encode(self, values: Sequence[Any]) -> tuple[bytes, Any, bytes]:
        """The encoding in three parts: before the content of the []byte, the content, after it. Raises GobError."""
        body = bytearray(self.identity)
        cut, content = _put(body, self.fields, values) or (0, b"")
        size = bytearray()
        put_uint(size, len(body) + len(content))
        return b"".join((self.definitions, size, body[:cut])), content, bytes(body[cut:])


# -- decoding ------------------------------------------------------------------------------------------------


def _plan(struct: StructType, steps: DecodePlan, type_id: int, definitions: TypeDefinitions) -> DecodePlan:
    """What to do with each field of the peer's type `type_id` to decode a `struct` from it."""
    peer_type = definitions.get(type_id)
    if peer_type is None or peer_type.kind != types.STRUCT:
        raise GobError(f"{struct.name} expected, found type {type_id}")
    own = {name: (kind, step) for (name, kind), step in zip(struct.fields, steps, strict=True)}
    plan: list[DecodeStep] = []
    for name, peer_id in peer_type.fields:
        kind, (_, index, inner) = own.get(name, (_SKIP, (_SKIP, 0, ())))
        if kind == _SKIP:
            check_skippable(peer_id, definitions)
            plan.append((_SKIP, peer_id, None))
        elif isinstance(kind, StructType):
            plan.append((_INNER, 0, _plan(kind, inner, peer_id, definitions)))
        elif kind != peer_id:
            raise GobError(f"{struct.name}.{name} is of another type")
        else:
            plan.append((kind, index, None))
    if not any(op != _SKIP for op, _, _ in plan):
        raise GobError(f"it has no field of {struct.name}")
    return tuple(plan)


def _fill(plan: DecodePlan, buf: Buffer, at: int, values: list[Any], skipper: Skipper) -> int:
    """Decode a struct into `values`; returns the position after it. Hot path: numbers below 128 are read inline."""
    number = -1
    while True:
        delta = buf[at]
        at += 1
        if not delta:
            return at
        if delta > 127:
            delta, at = take_long(delta, buf, at)
        number += delta
        if number >= len(plan):
            raise GobError(f"no field {number + 1} in this struct")
        op, index, inner = plan[number]
        if op <= 0:
            at = skipper.skip(index, at, 0) if op == _SKIP else _fill(inner, buf, at, values, skipper)
            continue
        encoded = buf[at]
        at += 1
        if encoded > 127:
            encoded, at = take_long(encoded, buf, at)
        if op == UINT:
            values[index] = encoded
        elif op == INT:
            values[index] = from_zigzag(encoded)
        elif op == BOOL:
            values[index] = bool(encoded)
        elif op == FLOAT:
            values[index] = float_of(encoded)
        else:
            stop = at + encoded
            if stop > len(buf) and op == BYTES:
                raise DataBeyondHead(at, stop, len(buf))
            if stop > len(buf):
                raise GobError(f"a text of {encoded} bytes where {len(buf) - at} are left")
            if op == STRING:
                values[index] = str(buf[at:stop], "utf-8", "surrogateescape")
            else:
                values[index] = memoryview(buf)[at:stop]
            at = stop


# -- encoding ------------------------------------------------------------------------------------------------


def _fields(struct: StructType) -> DecodePlan:
    """The fields of a struct for `_put`: (kind or _INNER, number, fields of the inner struct) each."""
    return tuple(
        (_INNER, number, _fields(kind)) if isinstance(kind, StructType) else (kind, number, None)
        for number, (_, kind) in enumerate(struct.fields)
    )


def _put(out: bytearray, fields: DecodePlan, values: Sequence[Any]) -> tuple[int, Any] | None:
    """Append a struct without the content of its []byte; returns that content and its position in `out`."""
    content = None
    last = -1
    for (op, number, inner), value in zip(fields, values, strict=True):
        if not value:
            continue
        out.append(number - last)
        last = number
        if op == UINT:
            put_uint(out, value)
        elif op == INT:
            put_int(out, value)
        elif op == STRING:
            put_text(out, value)
        elif op == BYTES:
            put_uint(out, len(value))
            content = len(out), value
        elif op == _INNER:
            # As in Go a struct is encoded even when every field is zero: its values are a tuple that is not empty.
            content = _put(out, inner, value)
        elif op == BOOL:
            out.append(1)
        else:
            put_float(out, value)
    out.append(0)
    return content
