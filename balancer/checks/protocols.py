"""What a check says to a service of a known protocol, and which answers mean that the service works.

RULES: pure; one function per protocol, over Talk. A check asks for nothing that changes the service, needs no password,
and says goodbye where the service would log a lost connection. A service that wants to know who asks does work: a request
to log in is as good an answer as a greeting.

Sources: RFC 5321 (SMTP), RFC 9051 (IMAP), the manuals of Redis (RESP), PostgreSQL (chapter "Frontend/Backend Protocol"),
MySQL ("Connection Phase"), MQTT 3.1.1 (sections 3.1, 3.2 and 3.14).
"""

import re
import struct
from collections.abc import Callable, Generator

from balancer.checks.check import Check
from balancer.checks.talk import Dialogue, Steps, Talk, Unexpected

# Our wire format: a request that is a dry run and names no size, without ID, of the original's own type definitions.
FRAME_MAGIC = bytes.fromhex("aade07a60257c2d0")
HEALTH_REQUEST = bytes.fromhex(
    "aade07a60257c2d000000000000000b45b7f030101075265717565737401ff800001050107496d67496e666f01ff8200"
    "010b5461726765745769647468010600010c546172676574486569676874010600010943726561746564417401040001"
    "0644727952756e01020000004fff8103010107496d67496e666f01ff82000105010c4f726967696e616c4e616d65010c"
    "0001035479700104000105576964746801060001064865696768740106000107496d6744617461010a00000007ff8001"
    "00040100"
)
MOST_FRAME = 2048  # payload of a reply without a picture
_PG_VERSION = 196608  # 3.0
_PG_TERMINATE = b"X\0\0\0\x04"
_MYSQL_FLAGS = 0x0200 | 0x8000 | 0x0008_0000  # protocol 4.1, its authentication, names of its plugins
_MQTT_CONNECT = bytes.fromhex("10 0c 0004 4d515454 04 02 000a 0000")  # "MQTT", 3.1.1, clean session, no name


def http(talk: Talk, check: Check, host: str) -> Steps:
    """The status of an answer is within the expected range. Servers refuse a Host that is not the server name of TLS."""
    words = (
        f"{check.method} {check.path} HTTP/1.1\r\nHost: {check.host or check.sni or host}\r\n"
        "User-Agent: balancer-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    talk.goodbye(words.encode("latin-1"))
    yield from talk.prefix(b"HTTP/1.")
    line = yield from talk.line(r"[01] \d\d\d\b")
    if not check.expect[0] <= int(line[2:5]) <= check.expect[1]:
        raise Unexpected(b"HTTP/1." + line, "status")


def redis(talk: Talk, check: Check, host: str) -> Steps:
    """It answers PING, and has the role that is asked for. NOAUTH is an answer; LOADING and MASTERDOWN are not."""
    talk.send(b"PING\r\n")
    yield from talk.line(r"\+PONG" if check.role else r"\+PONG|-NOAUTH")
    if check.role:
        talk.send(b"INFO replication\r\n")
        yield from talk.prefix(b"$")
        yield from talk.pattern(re.compile(rb"role:"))
        yield from talk.prefix(b"master" if check.role == "primary" else b"slave")


def smtp(talk: Talk, check: Check, host: str) -> Steps:
    """A greeting of 220, then QUIT."""
    try:
        yield from _smtp_reply(talk, "220")
    finally:
        talk.goodbye(b"QUIT\r\n")  # also to one that wants no mail now
    yield from _smtp_reply(talk, "221")


def _smtp_reply(talk: Talk, code: str) -> Steps:
    """The lines of a reply with this code; in all but the last one a hyphen follows it."""
    while (yield from talk.line(code))[3:4] == b"-":
        pass


def imap(talk: Talk, check: Check, host: str) -> Steps:
    """A greeting of OK, then LOGOUT."""
    yield from talk.line(r"\* (OK|PREAUTH)\b")
    talk.goodbye(b"a LOGOUT\r\n")
    yield from talk.line(r"\* BYE\b")


def mqtt(talk: Talk, check: Check, host: str) -> Steps:
    """A CONNACK that accepts, or asks who is there; then DISCONNECT."""
    talk.send(_MQTT_CONNECT)
    yield from talk.prefix(b"\x20\x02")
    answer = yield from talk.exactly(2)
    if answer[1] == 0:
        talk.goodbye(b"\xe0\x00")
    elif answer[1] not in (2, 4, 5):  # identifier, user name and password, authorization
        raise Unexpected(b"\x20\x02" + answer)


def frame(talk: Talk, check: Check, host: str) -> Steps:
    """A whole frame in answer to the health request. A resizer that could take no picture closes without one."""
    talk.send(HEALTH_REQUEST)
    yield from talk.prefix(FRAME_MAGIC)
    head = yield from talk.exactly(8)
    (length,) = struct.unpack(">Q", head)
    if not 0 < length <= MOST_FRAME:
        raise Unexpected(FRAME_MAGIC + head)
    yield from talk.exactly(length)


def mysql(talk: Talk, check: Check, host: str) -> Steps:
    """A greeting of protocol 10; with a user, a login without password, then COM_QUIT. Without a login the server counts
    an interrupted handshake, and locks a host out after max_connect_errors of them."""
    greeting = yield from _mysql_packet(talk)
    if greeting[:1] != b"\x0a":
        raise Unexpected(greeting)
    if not check.user:
        return
    login = struct.pack("<IIB23x", _MYSQL_FLAGS, 1 << 24, 33) + check.user.encode() + b"\0\0"
    login += b"mysql_native_password\0"
    talk.send(_mysql_head(login, 1) + login)
    answer = yield from _mysql_packet(talk)
    if answer[:1] == b"\xfe":  # another plugin: no password either
        talk.send(_mysql_head(b"", 3))
        answer = yield from _mysql_packet(talk)
    if answer[:1] != b"\0":
        raise Unexpected(answer)
    talk.goodbye(_mysql_head(b"\x01", 0) + b"\x01")


def _mysql_head(payload: bytes, number: int) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number])


def _mysql_packet(talk: Talk) -> Generator[None, None, bytes]:
    head = yield from talk.exactly(4)
    return (yield from talk.exactly(int.from_bytes(head[:3], "little")))


def pgsql(talk: Talk, check: Check, host: str) -> Steps:
    """The server asks for a login, or lets the user in. With a role it must let the user in: it then says whether it is
    in recovery (`in_hot_standby`, PostgreSQL 14 and newer). An error is an answer as well, unless it says that the server
    starts, stops or has no place (SQLSTATE classes 57 and 53)."""
    user = check.user or "postgres"
    names = {"user": user, "database": "postgres", "application_name": "balancer-check"}
    body = struct.pack(">I", _PG_VERSION)
    body += b"".join(f"{key}\0{value}\0".encode() for key, value in names.items()) + b"\0"
    talk.send(struct.pack(">I", len(body) + 4) + body)
    while True:
        kind = yield from talk.exactly(1)
        if kind not in b"REKNSZv":
            raise Unexpected(kind + talk.received)
        head = yield from talk.exactly(4)
        text = yield from talk.exactly(max(0, int.from_bytes(head, "big") - 4))
        if kind == b"E" and (check.role or _sqlstate(text)[:2] in (b"57", b"53")):
            raise Unexpected(_message(text))
        if kind == b"E":
            return
        if kind == b"R" and any(text[:4]):
            if check.role:
                raise Unexpected(b"asks for a password: a role is told to users without one only")
            return
        if kind == b"S" and text.startswith(b"in_hot_standby\0"):
            is_primary = text[15:-1] == b"off"
            if check.role and is_primary != (check.role == "primary"):
                talk.goodbye(_PG_TERMINATE)
                raise Unexpected(text[:-1].replace(b"\0", b"="))
            if check.role:
                break
        if kind == b"Z":
            if check.role:
                raise Unexpected(b"does not say in_hot_standby: older than PostgreSQL 14")
            break
    talk.goodbye(_PG_TERMINATE)


def _fields(text: bytes) -> dict[bytes, bytes]:
    return {field[:1]: field[1:] for field in text.split(b"\0") if field}


def _sqlstate(text: bytes) -> bytes:
    return _fields(text).get(b"C", b"")


def _message(text: bytes) -> bytes:
    fields = _fields(text)
    return fields.get(b"C", b"") + b" " + fields.get(b"M", b"")


def script(talk: Talk, check: Check, host: str) -> Steps:
    """The lines of a configuration."""
    for step in check.steps:
        match step.how:
            case "send":
                talk.send(step.data)
            case "contained":
                yield from talk.pattern(re.compile(re.escape(step.data)))
            case "prefix":
                yield from talk.prefix(step.data)
            case _:
                yield from talk.pattern(re.compile(step.data))


PROTOCOLS: dict[str, Callable[[Talk, Check, str], Steps]] = {
    "http": http,
    "redis": redis,
    "smtp": smtp,
    "imap": imap,
    "pgsql": pgsql,
    "mysql": mysql,
    "mqtt": mqtt,
    "frame": frame,
    "script": script,
}


def dialogue_of(check: Check, host: str) -> Dialogue | None:
    """What a check says to a service at `host` (for HTTP, "10.0.0.1:80"); None when it only connects."""
    talk = PROTOCOLS.get(check.kind)
    return None if talk is None else Dialogue(lambda one: talk(one, check, host))
