"""A name server that lies as real ones do: TTLs of 600 or 0, answers cut with or without saying so, errors, silence.

    with NameServer() as dns:
        dns.know("web.test", "127.0.0.2", "127.0.0.3", ttl=1)
        Balancer(..., resolver=dns.text)

Answers over UDP and TCP on one port of 127.0.0.1; `queries` counts them by name, kind and transport.
"""

import random
import socket
import threading
import time
from collections import Counter
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from scripts.lab.network import Address, free_port


class NameServer:
    """`rcode`: in place of every answer; `is_silent`: answers nothing; `most_udp`: records in an answer over UDP, the
    others missing, with the TC bit unless `hides_cuts`; `cuts_records`: the last one that is there ends within."""

    def __init__(self) -> None:
        self.address: Address = ("127.0.0.1", free_port())
        self.queries: Counter[tuple[str, str, str]] = Counter()
        self.rcode: int | None = None
        self.is_silent = False
        self.most_udp, self.hides_cuts, self.cuts_records = 1000, False, False
        self._zone: dict[tuple[str, str], tuple[list[str], int]] = {}
        self._aliases: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @property
    def text(self) -> str:
        return "{}:{}".format(*self.address)

    def know(self, name: str, *values: str, ttl: int = 1, kind: str = "A") -> None:
        """From now on these are the records of the name; none at all is NODATA."""
        with self._lock:
            self._zone[name, kind] = (list(values), ttl)

    def alias(self, name: str, target: str, ttl: int = 1) -> None:
        with self._lock:
            self._aliases[name] = (target, ttl)

    def forget(self, name: str) -> None:
        """No such name any longer."""
        with self._lock:
            for key in [key for key in self._zone if key[0] == name]:
                del self._zone[key]

    def __enter__(self) -> Self:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(self.address)
        self._tcp = socket.create_server(self.address)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._on_udp, self._on_tcp)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._udp.close()
        self._tcp.close()
        for thread in self._threads:
            thread.join(5)

    def _on_udp(self) -> None:
        self._udp.settimeout(0.2)
        while not self._stop.is_set():
            try:
                data, peer = self._udp.recvfrom(65535)
            except TimeoutError:
                continue
            except OSError:
                return
            if (answer := self._answer(data, "udp")) is not None:
                self._udp.sendto(answer, peer)

    def _on_tcp(self) -> None:
        self._tcp.settimeout(0.2)
        while not self._stop.is_set():
            try:
                conn, _ = self._tcp.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._on_stream, args=(conn,), daemon=True).start()

    def _on_stream(self, conn: socket.socket) -> None:
        with conn:
            conn.settimeout(5)
            try:
                length = int.from_bytes(conn.recv(2, socket.MSG_WAITALL), "big")
                answer = self._answer(conn.recv(length, socket.MSG_WAITALL), "tcp")
                if answer is not None:
                    whole = len(answer).to_bytes(2, "big") + answer
                    conn.sendall(whole[:40])
                    time.sleep(0.02)  # in pieces
                    conn.sendall(whole[40:])
            except OSError:
                pass

    def _answer(self, data: bytes, transport: str) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        with self._lock:
            self.queries[name, kind, transport] += 1
            if self.is_silent:
                return None
            reply = dns.message.make_response(query)
            if self.rcode is not None:
                reply.set_rcode(self.rcode)
                return reply.to_wire()
            if name in self._aliases:
                target, ttl = self._aliases[name]
                reply.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", "CNAME", target + "."))
                name = target
            values, ttl = self._zone.get((name, kind), ([], 1))
            values = random.sample(values, len(values))
            if transport == "udp" and len(values) > self.most_udp:
                values = values[: self.most_udp]
                if not self.hides_cuts:
                    reply.flags |= dns.flags.TC
            if values:
                reply.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", kind, *values))
            elif not any(key[0] == name for key in self._zone):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            if kind == "SRV":
                self._add_glue(reply, values)
            wire = reply.to_wire(max_size=65535)
            return wire[:-3] if self.cuts_records and reply.flags & dns.flags.TC else wire

    def _add_glue(self, reply: dns.message.Message, services: list[str]) -> None:
        for target in {value.split()[3].rstrip(".") for value in services}:
            values, ttl = self._zone.get((target, "A"), ([], 1))
            if values:
                reply.additional.append(dns.rrset.from_text(target + ".", ttl, "IN", "A", *values))
