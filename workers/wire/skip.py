"""Skipping values of unknown types: any type that a peer defines, but a limited number of values.

RULES: the time is bounded by MAX_SKIPPED and the stack by MAX_DEPTH, whatever the definitions say. Recursive types are
legal in gob and harmless here, because values are counted. Interfaces are refused: their values contain type names.
"""

from workers.wire import types
from workers.wire.numbers import Buffer, GobError, take_uint
from workers.wire.types import BOOL, BYTES, COMPLEX, STRING, TypeDefinition

MAX_DEPTH = 16
# Values in one message. Without this limit a 32 MiB slice of zeros would block a front for 16 s, at 0.5 us a value.
MAX_SKIPPED = 10_000

TypeDefinitions = dict[int, TypeDefinition]


def check_skippable(type_id: int, definitions: TypeDefinitions) -> None:
    """Raises GobError unless every type reachable from `type_id` is defined and can be skipped."""
    pending, seen = [type_id], set[int]()
    while pending:
        one = pending.pop()
        if BOOL <= one <= COMPLEX or one in seen:
            continue
        if one == types.INTERFACE:
            raise GobError("interfaces are not accepted")
        definition = definitions.get(one)
        if definition is None:
            raise GobError(f"type {one} is not defined")
        seen.add(one)
        if definition.kind == types.STRUCT:
            pending += [inner for _, inner in definition.fields]
        else:
            pending += (
                [definition.elem, definition.key] if definition.kind == types.MAP else [definition.elem]
            )


class Skipper:
    """Skips values in one message and counts them."""

    __slots__ = ("_buf", "_definitions", "_left")

    def __init__(self, buf: Buffer, definitions: TypeDefinitions) -> None:
        self._buf = buf
        self._definitions = definitions
        self._left = MAX_SKIPPED

    def skip(self, type_id: int, at: int, depth: int) -> int:
        """The position after the value of type `type_id` at `at`. Raises GobError."""
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise GobError("too many or too deep values in an unknown field")
        if type_id < BYTES:
            return take_uint(self._buf, at)[1]
        if type_id in (BYTES, STRING):
            size, at = take_uint(self._buf, at)
            if size > len(self._buf) - at:
                raise GobError(f"a text of {size} bytes where {len(self._buf) - at} are left")
            return at + size
        if type_id == COMPLEX:
            return take_uint(self._buf, take_uint(self._buf, at)[1])[1]
        definition = self._definitions[type_id]
        if definition.kind == types.STRUCT:
            return self._skip_struct(definition, at, depth)
        return self._skip_elements(definition, at, depth)

    def _skip_struct(self, definition: TypeDefinition, at: int, depth: int) -> int:
        number = -1
        while True:
            delta, at = take_uint(self._buf, at)
            if not delta:
                return at
            number += delta
            if number >= len(definition.fields):
                raise GobError(f"no field {number + 1} in this struct")
            at = self.skip(definition.fields[number][1], at, depth + 1)

    def _skip_elements(self, definition: TypeDefinition, at: int, depth: int) -> int:
        count, at = take_uint(self._buf, at)
        if count > len(self._buf) - at:  # every value takes at least one byte
            raise GobError(f"{count} elements where {len(self._buf) - at} bytes are left")
        if definition.kind == types.ARRAY and count != definition.length:
            raise GobError(f"{count} elements in an array of {definition.length}")
        for _ in range(count):
            if definition.kind == types.MAP:
                at = self.skip(definition.key, at, depth + 1)
            at = self.skip(definition.elem, at, depth + 1)
        return at
