"""A real mail server behind the balancer: Postfix learns its clients' addresses from PROXY headers, and checks leave no
complaint in its log. It runs from a directory of its own on loopback; that of the system stays untouched."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.lab.kernel import LISTEN, sockets_in
from scripts.lab.network import Address, free_port, text_of
from scripts.lab.process import LabProcess
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer

DAEMONS = Path("/usr/lib/postfix/sbin")
CLIENT = "127.0.0.5"  # another address than the balancer's own
SERVICES = {
    "smtpd": "smtpd -o smtpd_upstream_proxy_protocol=haproxy",
    "postscreen": "postscreen -o postscreen_upstream_proxy_protocol=haproxy -o smtpd_service_name=passed",
}
MAIN = """
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
daemon_directory = {daemons}
maillog_file = {home}/mail.log
maillog_file_prefixes = {home}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mail.example
mydestination =
local_recipient_maps =
mynetworks = 127.0.0.1/32
smtpd_peername_lookup = no
postscreen_greet_wait = 1s
"""
MASTER = """
127.0.0.1:{port} inet n - n - 1 {service}
passed pass - - n - - smtpd
anvil unix - - n - 1 anvil
rewrite unix - - n - - trivial-rewrite
postlog unix-dgram n - n - 1 postlogd
proxymap unix - - n - - proxymap
dnsblog unix - - n - 0 dnsblog
"""


class Postfix:
    """Where it listens, and what it has logged."""

    def __init__(self, home: Path, port: int) -> None:
        self.address: Address = ("127.0.0.1", port)
        self._log = home / "mail.log"

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def complaints(self) -> list[str]:
        """Lines of clients that went without a word, sent no header, or spoke out of turn."""
        words = ("lost connection", "HANGUP", "PREGREET", "warning:", "fatal:", "error:", "improper")
        return [line for line in self.log().splitlines() if any(word in line for word in words)]


@contextmanager
def postfix(service: str) -> Iterator[Postfix]:
    """A Postfix with one service, from its own directory; no queue manager, so no mail leaves it."""
    if not (DAEMONS / "master").exists():
        pytest.skip("postfix is not installed")
    if os.getuid() != 0:
        pytest.skip("postfix needs root, to become its own user")
    with tempfile.TemporaryDirectory(prefix="pb-postfix-") as made:
        home, port = Path(made), free_port()
        home.chmod(0o755)  # its processes are another user's
        for name in ("conf", "data", "queue", "queue/pid", "queue/private", "queue/public"):
            (home / name).mkdir()
        for name in ("data", "queue/private", "queue/public"):
            shutil.chown(home / name, "postfix")
        (home / "conf/main.cf").write_text(MAIN.format(home=home, daemons=DAEMONS))
        (home / "conf/master.cf").write_text(MASTER.format(port=port, service=SERVICES[service]))
        command = [str(DAEMONS / "master"), "-c", str(home / "conf"), "-d"]
        environment = dict(os.environ, MAIL_CONFIG=str(home / "conf"))
        with LabProcess(command, home / "output", environment=environment):
            wait_for(lambda: any(one.local == port for one in sockets_in(LISTEN)), "Postfix listening", 10)
            yield Postfix(home, port)


def converse(address: Address) -> None:
    """What a polite client says: it waits for the last line of each reply."""
    with socket.create_connection(address, 30, source_address=(CLIENT, 0)) as client:
        replies = client.makefile("rb")

        def reply(code: bytes) -> None:
            while True:
                line = replies.readline()
                assert line.startswith(code), line
                if line[3:4] != b"-":
                    return

        reply(b"220")
        for words in (b"EHLO client.example", b"NOOP"):
            client.sendall(words + b"\r\n")
            reply(b"250")
        client.sendall(b"QUIT\r\n")
        reply(b"221")


@pytest.mark.parametrize("service", SERVICES)
def test_postfix_sees_its_clients_and_no_fault_in_our_checks(service: str) -> None:
    """A check that only connects, or sends no header, fails this."""
    with postfix(service) as server:
        with Balancer(
            upstreams=[server.address], send_proxy="v1", check="smtp timeout=15s", check_interval="200ms"
        ) as lb:
            lb.wait_backend(text_of(server.address), "up", 15)
            for _ in range(2):
                converse(lb.address)
            wait_for(lambda: server.log().count(f"onnect from unknown[{CLIENT}]") >= 4, "both clients", 10)
            # `quit=1` alone: a check says nothing else
            wait_for(lambda: server.log().count("[127.0.0.1] quit=1 commands=1") >= 3, "three checks", 15)
            if service == "postscreen":
                assert f"CONNECT from [{CLIENT}]:" in server.log() and "PASS NEW" in server.log()
            assert lb.backend(text_of(server.address))["check"] == "ok"
        assert not server.complaints()
