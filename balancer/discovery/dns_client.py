"""Asks name servers without blocking: UDP, and TCP where an answer was cut, in the prober's loop.

RULES: knows queries and replies, nothing of sets. Each query has a socket of its own, and so a port that cannot be
guessed; an answer counts when it comes from the server that was asked, with the query's number and question. A server
that is silent for ATTEMPT seconds is asked again, and then the next one: after ATTEMPTS rounds the reply is a timeout. It
ends in exactly one call of `done`.

dnspython builds and reads the messages. It is imported with this module, which only a set of backends needs.
"""

import errno
import socket
import struct
from collections.abc import Callable

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from balancer.discovery.answers import NameReply, Query, ServiceRecord
from balancer.discovery.servers import NameServers
from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer

ATTEMPT = 0.5  # seconds
OVER_TCP = 2.0  # seconds for a query over TCP
ATTEMPTS = 3  # rounds over all servers
PAYLOAD = 1232  # bytes of an answer over UDP that no network cuts into fragments
MOST_BYTES = 65535
HEAD = 12  # bytes of a message before its question
CUT = 0x82  # QR and TC in the third of them

Done = Callable[[NameReply], object]


def read_message(message: dns.message.Message, server: str) -> NameReply:
    """What a reply says. Raises dns.exception.DNSException."""
    code = message.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return NameReply(dns.rcode.to_text(code), server=server)
    try:
        chain = message.resolve_chaining()  # type: ignore[attr-defined]
    except dns.exception.DNSException:  # aliases in a circle, or an answer about a name that does not exist
        return NameReply("FORMERR", server=server)
    if chain.answer is None:
        return NameReply("NXDOMAIN" if code == dns.rcode.NXDOMAIN else "NODATA", server=server)
    extra: dict[str, tuple[str, ...]] = {}
    for rrset in message.additional:
        # Of another class, a record of the same type is something else.
        if rrset.rdclass == dns.rdataclass.IN and rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            name = _text_of(rrset.name)
            extra[name] = extra.get(name, ()) + tuple(record.address for record in rrset)
    ttl = float(chain.minimum_ttl)
    if chain.answer.rdtype == dns.rdatatype.SRV:
        services = (ServiceRecord(r.priority, r.weight, r.port, _text_of(r.target)) for r in chain.answer)
        return NameReply("", services=tuple(services), ttl=ttl, server=server, extra=extra)
    return NameReply("", tuple(record.address for record in chain.answer), ttl=ttl, server=server)


def is_cut(data: bytes, query: bytes) -> bool:
    """Whether a datagram is an answer to `query` that says it is cut: by its head, since some servers cut within a
    record."""
    return len(data) >= HEAD and data[:2] == query[:2] and data[2] & CUT == CUT


def _text_of(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


class DnsQuery:
    """One query under way. `asked` counts what is sent."""

    def __init__(
        self, loop: Loop, servers: NameServers, query: Query, done: Done, asked: Callable[[], object]
    ) -> None:
        self._loop, self._servers, self._done, self._asked = loop, servers, done, asked
        self._message: dns.message.Message | None = None
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._turn = -1
        self._failure = "timeout"
        self._out, self._in = b"", b""
        try:
            name = dns.name.from_text(query.name + ".")
            self._message = dns.message.make_query(name, query.kind, payload=PAYLOAD)
        except (dns.exception.DNSException, ValueError):
            loop.call_at(loop.now, lambda: done(NameReply("no name")))
            return
        self._wire = self._message.to_wire()
        self._next()

    # -- one server after the other

    def _next(self) -> None:
        self._turn += 1
        servers = self._servers.servers
        if self._turn >= ATTEMPTS * len(servers):
            self._loop.call_at(self._loop.now, lambda: self._done(NameReply(self._failure)))
            return
        self._begin(self._servers.over_tcp)

    def _server(self) -> tuple[str, int]:
        servers = self._servers.servers
        return servers[self._turn % len(servers)]

    def _begin(self, over_tcp: bool) -> None:
        self._close()
        host, port = self._server()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM
        try:
            self._sock = sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            code = sock.connect_ex((host, port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, "connect")
            self._in = b""
            self._out = struct.pack(">H", len(self._wire)) + self._wire if over_tcp else b""
            self._asked()
            if not over_tcp:
                sock.send(self._wire)
        except OSError as error:
            self._failed(error)
            return
        self._timer = self._loop.call_at(
            self._loop.now + (OVER_TCP if over_tcp else ATTEMPT), self._on_timeout
        )
        self._loop.watch(sock.fileno(), self._on_stream if over_tcp else self._on_datagram)

    def _on_timeout(self) -> None:
        self._failure = "timeout"
        self._close()
        self._next()

    def _failed(self, error: OSError) -> None:
        self._failure = errno.errorcode.get(error.errno or 0, "error")
        self._close()
        # Not at once: a server that refuses would be asked all attempts within one moment.
        self._timer = self._loop.call_at(self._loop.now + ATTEMPT / 5, self._next)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            if self._loop.is_watched(self._sock.fileno()):
                self._loop.forget(self._sock.fileno())
            self._loop.retire(self._sock.close)
            self._sock = None

    # -- what comes

    def _on_datagram(self, mask: int) -> None:
        while self._sock is not None:
            try:
                data = self._sock.recv(MOST_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(error)
                return
            self._read(data, False)

    def _on_stream(self, mask: int) -> None:
        assert self._sock is not None
        try:
            while self._out:
                self._out = self._out[self._sock.send(self._out) :]
            while True:
                data = self._sock.recv(MOST_BYTES)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "closed")
                self._in += data
                end = 2 + int.from_bytes(self._in[:2], "big")
                if len(self._in) >= max(end, 3):
                    self._read(self._in[2:end], True)
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error)

    def _read(self, data: bytes, over_tcp: bool) -> None:
        """An answer, or something that only looks like one: another may come."""
        assert self._message is not None
        if not over_tcp and is_cut(data, self._wire):
            self._begin(True)
            return
        try:
            message = dns.message.from_wire(data)
            if not self._message.is_response(message):
                return
            reply = read_message(message, self._server()[0])
        except (dns.exception.DNSException, ValueError):
            return
        self._close()
        if reply.error in ("SERVFAIL", "REFUSED", "FORMERR", "NOTIMP") and self._has_others():
            self._failure = reply.error
            self._timer = self._loop.call_at(self._loop.now, self._next)
            return
        self._done(reply)

    def _has_others(self) -> bool:
        """Whether a server is left that was not asked in this round: an error of one says nothing of the others."""
        count = len(self._servers.servers)
        return count > 1 and (self._turn + 1) % count != 0
