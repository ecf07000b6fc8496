"""The gob codec: one value of a known struct per payload, to and from a flat list of values.

A Layout is a struct of ours with its fields numbered depth-first; values travel as a list in that order:

    Request{ImgInfo{name typ width height data} w h ...}  values = [name, typ, width, height, data, w, h, ...]

    decode   | definitions | n | id | field deltas and values |
             '-- key of the plan cache: the same peer sends the same bytes with every frame
    plan     by the peer's field number: (what to do, index in values, more)

RULES: fields are matched by name; a field we do not know is skipped, a known name of another type is refused.
Whatever the bytes are: GobError or a value, time and memory linear in their length, nothing called that they
name. A []byte is never copied, neither way; a struct of ours has one at most.
"""

from collections.abc import Sequence
from typing import Any

from workers.wire import types
from workers.wire.numbers import (
    Buffer,
    GobError,
    float_of,
    put_float,
    put_int,
    put_text,
    put_uint,
    take_int,
    take_long,
    take_uint,
    unfold,
)
from workers.wire.skip import Definitions, Skipper, check_skippable
from workers.wire.types import BOOL, BYTES, FLOAT, INT, STRING, UINT, Struct

MAX_PLANS = 64

_SKIP, _INNER = -1, 0
_ZERO: dict[int, Any] = {BOOL: False, INT: 0, UINT: 0, FLOAT: 0.0, BYTES: b"", STRING: ""}

Step = tuple[int, int, Any]
Plan = tuple[Step, ...]


class Layout:
    """A struct of ours, ready for work: its definitions, zero values and plans for peers' definitions."""

    def __init__(self, struct: Struct) -> None:
        self.struct = struct
        self.definitions = types.write_definitions(struct)
        self.zeros: list[Any] = []
        self.steps = self._number(struct)
        identity = bytearray()
        put_int(identity, struct.type_id)
        self.identity = bytes(identity)
        self._plans: dict[bytes, tuple[Definitions, dict[int, Plan]]] = {}
        self._latest = b""  # the definitions of the last payload: most often also of the next

    def _number(self, struct: Struct) -> Plan:
        steps: list[Step] = []
        for _, kind in struct.fields:
            if isinstance(kind, Struct):
                steps.append((_INNER, 0, self._number(kind)))
            else:
                steps.append((kind, len(self.zeros), None))
                self.zeros.append(_ZERO[kind])
        return tuple(steps)

    def decode(self, payload: Buffer) -> list[Any]:
        """The values in `payload`; a []byte among them is a memoryview of it. Raises GobError."""
        at, type_id = self._find_value(payload)
        key = self._latest = bytes(payload[:at])
        known = self._plans.get(key)
        if known is None:
            known = self._learn(key)
        definitions, plans = known
        plan = plans.get(type_id)
        if plan is None:
            plan = plans[type_id] = _plan(self.struct, self.steps, type_id, definitions)
        size, at = take_uint(payload, at)
        if at + size != len(payload):
            raise GobError("the value does not end where its payload ends")
        _, at = take_int(payload, at)
        values = self.zeros.copy()
        try:
            at = _fill(plan, payload, at, values, Skipper(payload, definitions))
        except IndexError:
            raise GobError("ends in the middle of a value") from None
        if at != len(payload):
            raise GobError("bytes after the value")
        return values

    def _find_value(self, payload: Buffer) -> tuple[int, int]:
        """Where the definitions end and the value's message begins, and the value's type."""
        at, end = 0, len(payload)
        if bytes(payload[: len(self._latest)]) == self._latest:
            at = len(self._latest)
        while True:
            size, body = take_uint(payload, at)
            if size > end - body:
                raise GobError(f"a part of {size} bytes where {end - body} are left")
            type_id, _ = take_int(payload, body)
            if type_id >= 0:
                return at, type_id
            at = body + size
            if at > types.MAX_DEFINITIONS:
                raise GobError(f"type definitions over {types.MAX_DEFINITIONS} bytes")

    def _learn(self, key: bytes) -> tuple[Definitions, dict[int, Plan]]:
        definitions: Definitions = {}
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
        if len(self._plans) >= MAX_PLANS:  # the oldest leaves: ever new definitions cost time, not memory
            del self._plans[next(iter(self._plans))]
        self._plans[key] = (definitions, {})
        return self._plans[key]

    def encode(self, values: Sequence[Any]) -> tuple[bytearray, Any, bytearray]:
        """What comes before the []byte's content, the content itself, what comes after. Raises GobError."""
        parts: list[Any] = [bytearray(self.identity)]
        _put(self.steps, values, parts)
        parts[-1].append(0)
        before, content, after = parts if len(parts) == 3 else (parts[0], b"", bytearray())
        head = bytearray(self.definitions)
        put_uint(head, len(before) + len(content) + len(after))
        head += before
        return head, content, after


# -- decoding ------------------------------------------------------------------------------------------------


def _plan(struct: Struct, steps: Plan, type_id: int, definitions: Definitions) -> Plan:
    """What to do with each field of the peer's type `type_id` to make a `struct` of it."""
    theirs = definitions.get(type_id)
    if theirs is None or theirs.kind != types.STRUCT:
        raise GobError(f"{struct.name} expected, type {type_id} came")
    ours = {name: (kind, step) for (name, kind), step in zip(struct.fields, steps, strict=True)}
    plan: list[Step] = []
    for name, their_id in theirs.fields:
        kind, (_, index, inner) = ours.get(name, (_SKIP, (_SKIP, 0, ())))
        if kind == _SKIP:
            check_skippable(their_id, definitions)
            plan.append((_SKIP, their_id, None))
        elif isinstance(kind, Struct):
            plan.append((_INNER, 0, _plan(kind, inner, their_id, definitions)))
        elif kind != their_id:
            raise GobError(f"{struct.name}.{name} is of another type")
        else:
            plan.append((kind, index, None))
    if not any(op != _SKIP for op, _, _ in plan):
        raise GobError(f"no field of {struct.name} in it")
    return tuple(plan)


def _fill(plan: Plan, buf: Buffer, at: int, values: list[Any], skipper: Skipper) -> int:
    """Read a struct into `values`; the position after it. Hot: numbers below 128 are read in place."""
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
        if op == _INNER:
            at = _fill(inner, buf, at, values, skipper)
            continue
        if op == _SKIP:
            at = skipper.skip(index, at, 0)
            continue
        folded = buf[at]
        at += 1
        if folded > 127:
            folded, at = take_long(folded, buf, at)
        if op == UINT:
            values[index] = folded
        elif op == INT:
            values[index] = unfold(folded)
        elif op == BOOL:
            values[index] = bool(folded)
        elif op == FLOAT:
            values[index] = float_of(folded)
        else:
            stop = at + folded
            if stop > len(buf):
                raise GobError(f"a text of {folded} bytes where {len(buf) - at} are left")
            if op == STRING:
                values[index] = str(buf[at:stop], "utf-8", "surrogateescape")
            else:
                values[index] = memoryview(buf)[at:stop]
            at = stop


# -- encoding ------------------------------------------------------------------------------------------------


def _put(steps: Plan, values: Sequence[Any], parts: list[Any]) -> None:
    """Append a struct without its end mark to the last of `parts`; a []byte becomes a part of its own."""
    out = parts[-1]
    last = -1
    for number, (op, index, inner) in enumerate(steps):
        if op == _INNER:  # sent even when all zero, as Go does
            out.append(number - last)
            last = number
            _put(inner, values, parts)
            out = parts[-1]
            out.append(0)
            continue
        value = values[index]
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
            out = bytearray()
            parts += (value, out)
        elif op == BOOL:
            out.append(1)
        else:
            put_float(out, value)
