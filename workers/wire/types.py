"""Type definitions in a gob stream: those of a peer, which are read, and those of our structs, which are written.

    builtin ids    1 bool  2 int  3 uint  4 float64  5 []byte  6 string  7 complex128  8 interface
    definition     | n | -id | WireType value |
    WireType       1 ArrayT{common, elem, len}  2 SliceT{common, elem}
                   3 StructT{common, []{name, id}}  4 MapT{common, key, elem}
                   5 GobEncoderT  6 BinaryMarshalerT  7 TextMarshalerT: opaque, readable only by the type's own code

RULES: a definition is untrusted, so the number of types, fields, bytes and characters is limited here. A TypeDefinition
is well-formed; the type ids in it may be undefined.
"""

from dataclasses import dataclass

from workers.wire.numbers import Buffer, GobError, put_int, put_text, put_uint, take_int, take_uint

BOOL, INT, UINT, FLOAT, BYTES, STRING, COMPLEX, INTERFACE = range(1, 9)
ARRAY, SLICE, STRUCT, MAP = range(1, 5)  # WireType's field numbers
OPAQUE = {5: "GobEncoder", 6: "BinaryMarshaler", 7: "TextMarshaler"}

MAX_TYPES = 32
MAX_FIELDS = 126  # so that every field delta is encoded in one byte
MAX_NAME = 256
MAX_DEFINITIONS = 16 * 1024  # bytes; Go's definitions of both structs take 300


@dataclass(frozen=True, slots=True)
class TypeDefinition:
    """One type that a peer defined."""

    kind: int
    elem: int = 0
    key: int = 0
    length: int = 0
    fields: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class StructType:
    """A struct of this program: its fields in wire order, each a builtin id or another StructType."""

    name: str
    type_id: int
    fields: tuple[tuple[str, "int | StructType"], ...]


# -- reading -------------------------------------------------------------------------------------------------


def read_definition(buf: Buffer, at: int, stop: int) -> TypeDefinition:
    """The WireType value in buf[at:stop], exactly. Raises GobError."""
    found: list[TypeDefinition] = []
    number, at = _next_field(buf, at, 0)
    while number:
        if number in OPAQUE:
            raise GobError(f"a {OPAQUE[number]} type cannot be decoded")
        if number > MAP:
            raise GobError(f"unknown kind of type {number}")
        definition, at = _read_body(buf, at, number)
        found.append(definition)
        number, at = _next_field(buf, at, number)
    if len(found) != 1 or at != stop:
        raise GobError("a type definition does not fill its message")
    return found[0]


def _read_body(buf: Buffer, at: int, kind: int) -> tuple[TypeDefinition, int]:
    numbers = {2: 0, 3: 0}  # array: elem, length; slice: elem; map: key, elem
    fields: tuple[tuple[str, int], ...] = ()
    number, at = _next_field(buf, at, 0)
    while number:
        if number == 1:
            at = _skip_common(buf, at)
        elif kind == STRUCT and number == 2:
            fields, at = _read_fields(buf, at)
        elif number in numbers:
            numbers[number], at = take_int(buf, at)
        else:
            raise GobError(f"unknown field {number} in a type definition")
        number, at = _next_field(buf, at, number)
    if kind == MAP:
        return TypeDefinition(kind, elem=numbers[3], key=numbers[2]), at
    return TypeDefinition(kind, elem=numbers[2], length=numbers[3], fields=fields), at


def _read_fields(buf: Buffer, at: int) -> tuple[tuple[tuple[str, int], ...], int]:
    count, at = take_uint(buf, at)
    if count > MAX_FIELDS:
        raise GobError(f"a struct of {count} fields")
    fields: list[tuple[str, int]] = []
    for _ in range(count):
        name, type_id = "", 0
        number, at = _next_field(buf, at, 0)
        while number:
            if number == 1:
                name, at = _take_name(buf, at)
            elif number == 2:
                type_id, at = take_int(buf, at)
            else:
                raise GobError(f"unknown field {number} in a struct's field")
            number, at = _next_field(buf, at, number)
        fields.append((name, type_id))
    return tuple(fields), at


def _skip_common(buf: Buffer, at: int) -> int:
    """CommonType{name, id}: neither is used, because values refer to the id of the message."""
    number, at = _next_field(buf, at, 0)
    while number:
        if number == 1:
            _, at = _take_name(buf, at)
        elif number == 2:
            _, at = take_int(buf, at)
        else:
            raise GobError(f"unknown field {number} in a type definition")
        number, at = _next_field(buf, at, number)
    return at


def _next_field(buf: Buffer, at: int, number: int) -> tuple[int, int]:
    """Number (from 1) of the next field present, 0 at the end of the struct; and the position after it."""
    delta, at = take_uint(buf, at)
    return (number + delta if delta else 0), at


def _take_name(buf: Buffer, at: int) -> tuple[str, int]:
    size, at = take_uint(buf, at)
    if size > MAX_NAME:
        raise GobError(f"a name of {size} bytes")
    if at + size > len(buf):
        raise GobError("ends in the middle of a name")
    return str(buf[at : at + size], "utf-8", "replace"), at + size


# -- writing -------------------------------------------------------------------------------------------------


def write_definitions(struct: StructType) -> bytes:
    """The definition messages of `struct` and of structs inside it, outermost first, as Go's encoder does."""
    body = bytearray()
    put_int(body, -struct.type_id)
    body += b"\x03\x01\x01"  # WireType.StructT, its CommonType, its name
    put_text(body, struct.name)
    body.append(1)
    put_int(body, struct.type_id)
    body += b"\x00\x01"  # end of CommonType; StructType.Field
    put_uint(body, len(struct.fields))
    for name, kind in struct.fields:
        body.append(1)
        put_text(body, name)
        body.append(1)
        put_int(body, kind.type_id if isinstance(kind, StructType) else kind)
        body.append(0)
    body += b"\x00\x00"
    out = bytearray()
    put_uint(out, len(body))
    out += body
    inner = (kind for _, kind in struct.fields if isinstance(kind, StructType))
    return bytes(out) + b"".join(write_definitions(kind) for kind in inner)
