"""Plain designs of a resizer, for the bench only: same frames, same picture function, other dispatch.

    python -m scripts.plain_designs DESIGN PORT CPUS

prefork    N processes accept from one listening socket, each serves its connection inline
reuseport  the same with a SO_REUSEPORT socket for each
fifo       a thread per connection, one queue, N processes behind it (concurrent.futures)
"""

import os
import signal
import socket
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from workers import imaging
from workers.wire.frames import FrameReader, frame
from workers.wire.messages import Request, Response, decode_request, encode_response


def work(data: bytes, width: int, height: int) -> tuple[bytes, int, int]:
    """One picture, in whichever process the design runs it."""
    answer = imaging.resize(data, imaging.ResizeJob(width, height), imaging.PictureLimits())
    return answer.data, answer.width, answer.height


def prepare() -> None:
    imaging.prepare()


def answer_to(request: Request, done: tuple[bytes, int, int]) -> bytes:
    data, width, height = done
    response = Response(data=data, resized_width=width, resized_height=height, id=request.id, status=200)
    return frame(encode_response(response))


def serve(conn: socket.socket, pool: ProcessPoolExecutor | None) -> None:
    """Every request of one connection, one after the other."""
    reader = FrameReader()
    with conn:
        while data := conn.recv(1 << 18):
            for payload in reader.feed(data):
                request = decode_request(payload)
                if request.dry_run:
                    conn.sendall(answer_to(request, (b"", request.target_width, request.target_height)))
                    continue
                job = (bytes(request.data), request.target_width, request.target_height)
                conn.sendall(answer_to(request, pool.submit(work, *job).result() if pool else work(*job)))


def listen(port: int, shared: bool) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(1024)
    return sock


def inline(sock: socket.socket) -> None:
    """One process: threads only so that a connection does not wait for another to end."""
    prepare()
    while True:
        conn, _ = sock.accept()
        threading.Thread(target=serve, args=(conn, None), daemon=True).start()


def main() -> None:
    design, port, cpus = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    if design == "fifo":
        with ProcessPoolExecutor(cpus, get_context("fork"), prepare) as pool:
            list(pool.map(abs, range(cpus)))
            sock = listen(port, True)
            while True:
                conn, _ = sock.accept()
                threading.Thread(target=serve, args=(conn, pool), daemon=True).start()
    socks = [listen(port, True)] * cpus if design == "prefork" else [listen(port, False) for _ in range(cpus)]
    for sock in socks:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            inline(sock)
    signal.pause()


if __name__ == "__main__":
    main()
