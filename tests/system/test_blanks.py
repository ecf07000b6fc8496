"""Paths with blanks wherever a path may stand: in a file and on a command line, over a reload and an upgrade."""

import socket
from pathlib import Path

from scripts.lab.backends import Echo
from scripts.lab.network import text_of
from scripts.lab.process import is_running
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer
from tests.system.upgradable import UpgradableBalancer, subreaper


def is_echoed(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(b"hello")
        return client.recv(5) == b"hello"


def test_a_path_with_blanks_works_wherever_a_path_may_stand(tmp_path: Path) -> None:
    place = tmp_path / "my app"
    place.mkdir()
    behind = f'unix:"{place}/be hind, 1.sock"'
    file = place / "the file.ini"
    text = f'[balancer]\nbind = unix:{place}/fr ont.sock\nupstream = {behind} name="be hind" weight=WEIGHT\n'
    file.write_text(text.replace("WEIGHT", "2"))
    with Echo() as backend, subreaper():
        first = UpgradableBalancer(tmp_path, port=None, workers=1)
        first.arguments = ["-c", str(file), f"--admin={place}/ad min", "--workers=1"]
        first.arguments += [
            f"--metrics=unix:{place}/web page",
            f"--log={place}/the log",
            f"--pidfile={place}/the pid",
        ]
        first.admin, first.log_path = place / "ad min", place / "the log"
        with Balancer(f"--bind={behind}", upstreams=[text_of(backend.address)], port=None), first:
            assert is_echoed(place / "fr ont.sock")
            file.write_text(text.replace("WEIGHT", "3"))
            done = first.ctl("reload")
            assert done.returncode == 0 and "be hind" in done.stdout, done
            old = first.pid
            first.upgrade()
            wait_for(lambda: not is_running(old), "the old master gone", 20)
            assert is_echoed(place / "fr ont.sock")
            first.expect("all-down")
            done = first.ctl("maint", "be hind", "--reason", "a new disk")
            assert done.returncode == 0, done
            [found] = first.status()["backends"]
            assert (found["name"], found["state"], found["weight"]) == ("be hind", "maint", 3)
            assert sorted(path.name for path in place.iterdir()) == [
                "ad min",
                "be hind, 1.sock",
                "fr ont.sock",
                "the file.ini",
                "the log",
                "the pid",
                "web page",
            ]
