"""Crowds in processes of their own: sessions that are held, backends that hold them, scrapers of the console.

    Holding     connects many clients from several source addresses, each of which has had an answer of its backend
    Serving     one port at every address of the machine, in several processes: a thousand backends on 127.0.0.0/8
    Scraping    clients of the console that ask again and again, of each path so many

RULES: as of every helper process (scripts/lab/helpers.py). Each has as many descriptors as the machine allows.
"""

import asyncio
import contextlib
import json
import resource
import selectors
import socket
import sys
import time
from collections import Counter
from itertools import cycle, islice

from scripts.lab.helpers import HelperProcess
from scripts.lab.network import Address

SOURCES = [f"127.0.1.{last}" for last in range(1, 9)]
BACKLOG = 4096
AT_ONCE = 200  # connects under way
PATIENCE = 60.0  # seconds for an answer


class Serving(HelperProcess):
    """Backends at a port of every IPv4 address; several may serve the same one."""

    def __init__(self, port: int) -> None:
        super().__init__("tests.system.crowd", "serve", port)
        assert self.read_line() == "ready"


class Holding(HelperProcess):
    """So many clients, each of which has had its answer."""

    def __init__(self, address: Address, count: int) -> None:
        super().__init__("tests.system.crowd", "hold", *address, count)


class Scraping(HelperProcess):
    """Clients of the console at `address`: of each path (or path and header) so many, each asks again `every` seconds
    after an answer."""

    def __init__(self, address: Address, crowd: dict[str, int], every: float) -> None:
        super().__init__("tests.system.crowd", "scrape", *address, json.dumps(crowd), every)


def serve(port: int) -> None:
    """Echo until the end of standard input."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind(("0.0.0.0", port))
    server.listen(BACKLOG)
    server.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(server, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is server:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        conn, _ = server.accept()
                        conn.setblocking(False)
                        selector.register(conn, selectors.EVENT_READ)
            elif key.fileobj is sys.stdin:
                print(json.dumps({"held": len(selector.get_map()) - 2}))
                return
            else:
                echo(selector, key.fileobj)  # type: ignore[arg-type]


def echo(selector: selectors.BaseSelector, conn: socket.socket) -> None:
    try:
        data = conn.recv(4096)
    except OSError:
        data = b""
    if data:
        conn.sendall(data)
    else:
        selector.unregister(conn)
        conn.close()


def hold(address: Address, count: int) -> None:
    """Connect, say a word, hear it, hold; close at the end of standard input."""
    clients: list[socket.socket] = []
    sources = cycle(SOURCES)
    while len(clients) < count:
        some = []
        for source in islice(sources, min(AT_ONCE, count - len(clients))):
            some.append(socket.create_connection(address, PATIENCE, (source, 0)))
            some[-1].sendall(b"x")
        for one in some:
            assert one.recv(1) == b"x"
        clients += some
    print("ready", flush=True)
    sys.stdin.read()
    lost = 0
    for one in clients:
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            lost += bool(one.recv(1) == b"")
    print(json.dumps({"lost": lost}))


class Scraper:
    """One client: a connection that is kept while the console keeps it."""

    def __init__(self, address: Address, path: str) -> None:
        self.address, self.path = address, path
        self.version = ""
        self.answers, self.size, self.longest = 0, 0, 0.0
        self.failures: Counter[str] = Counter()

    async def run(self, every: float) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
                await self.ask_on(reader, writer, every)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures[type(error).__name__] += 1
                await asyncio.sleep(every)

    async def ask_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, every: float) -> None:
        try:
            while True:
                began = time.monotonic()
                path = self.path.replace("VERSION", self.version)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: console\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200"), head
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                body = await reader.readexactly(length)
                self.longest = max(self.longest, time.monotonic() - began)
                self.answers += 1
                self.size = max(self.size, length)
                if path != self.path:
                    self.version = json.loads(body)["version"]
                await asyncio.sleep(every)
        finally:
            writer.close()


async def scrape(address: Address, crowd: dict[str, int], every: float) -> None:
    """Ask until the end of standard input, then tell the answers by path."""
    scrapers = [Scraper(address, path) for path, count in crowd.items() for _ in range(count)]
    tasks = [asyncio.create_task(one.run(every)) for one in scrapers]
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    found = {}
    for path in crowd:
        ours = [one for one in scrapers if one.path == path]
        found[path] = {
            "answers": sum(one.answers for one in ours),
            "without": sum(not one.answers for one in ours),
            "size": max(one.size for one in ours),
            "longest": max(one.longest for one in ours),
            "failures": sum((one.failures for one in ours), Counter()),
        }
    print(json.dumps(found))


def main(verb: str, *words: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    match verb:
        case "serve":
            serve(int(words[0]))
        case "hold":
            hold((words[0], int(words[1])), int(words[2]))
        case "scrape":
            asyncio.run(scrape((words[0], int(words[1])), json.loads(words[2]), float(words[3])))


if __name__ == "__main__":
    main(*sys.argv[1:])
