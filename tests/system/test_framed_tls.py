"""Framed mode with TLS at both ends, over real processes: TLS clients, and balancers that end TLS before the backends."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.waiting import wait_for
from tests.system.framed_peer import FramedBackend, OwningClient, run_together
from tests.system.harness import Balancer
from tests.system.test_backend_tls import Files
from tests.system.test_tls import context

CLIENTS, REQUESTS = 6, 40


@pytest.mark.parametrize("order", ["strict", "any"])
def test_every_client_gets_its_own_replies_over_tls(tmp_path: Path, order: str) -> None:
    files = Files(tmp_path)
    trusting = context(files)

    def wrap(sock: socket.socket) -> socket.socket:
        return trusting.wrap_socket(sock, server_hostname="a.example")

    with ExitStack() as stack:
        backends = [stack.enter_context(FramedBackend(n)) for n in range(2)]
        ending = [
            stack.enter_context(Balancer(f"--tls-cert={files.backend}", upstreams=[one.address]))
            for one in backends
        ]
        words = (f"--tls-cert={files.certificate}", "--tls", f"--tls-ca={files.backends_ca}")
        lb = stack.enter_context(
            Balancer(
                *words, upstreams=[one.address for one in ending], order=order, mode="framed", frame="gowork"
            )
        )
        clients = [OwningClient(lb.address, n, order, wrap=wrap) for n in range(CLIENTS)]
        run_together(clients, REQUESTS)
        big = [OwningClient(lb.address, CLIENTS + n, order, wrap=wrap) for n in range(2)]
        run_together(big, 8, sizes=(100_000, 400_000))
        assert sum(client.lost for client in clients + big) == 0
        requests = CLIENTS * REQUESTS + 2 * 8
        assert sum(one.requests for one in backends) == requests
        wait_for(
            lambda: sum(one["sessions_total"] for one in lb.status()["backends"]) == requests,
            "every request counted",
            20.0,
        )
        # Each connection carries many requests, and shakes hands once.
        assert sum(one.connections for one in backends) < requests / 2
