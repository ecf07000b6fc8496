"""A PostgreSQL server of its own, with TLS, in a temporary directory; skips where none is installed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.lab.network import Address, free_port
from scripts.lab.process import LabProcess
from scripts.lab.waiting import wait_for
from tests.authority import Authority

PLACES = Path("/usr/lib/postgresql")


def programs() -> Path:
    """The directory of initdb and postgres."""
    found = shutil.which("postgres")
    places = [Path(found).parent] if found else sorted(PLACES.glob("*/bin"))
    if not places or not (places[-1] / "initdb").exists():
        pytest.skip("no PostgreSQL server is installed")
    return places[-1]


def as_another_user(directory: Path) -> list[str]:
    """What comes before a command so that it does not run as root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed, and PostgreSQL does not run as root")
    shutil.chown(directory, "nobody", "nogroup")
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@contextmanager
def postgres_server(*names: str) -> Iterator[Address]:
    """Serves user postgres without a password, over TLS with a certificate for these names, and without TLS."""
    where = programs()
    with tempfile.TemporaryDirectory(prefix="pb-pg-") as name:
        directory = Path(name)
        before = as_another_user(directory)
        data = directory / "data"
        initdb = [
            *before,
            str(where / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
        ]
        subprocess.run(
            [*initdb, "-E", "UTF8", "--locale=C"], check=True, capture_output=True, timeout=120, cwd=directory
        )
        port = free_port()
        pem = data / "server.pem"
        pem.write_bytes(Authority().issue(*names))
        pem.chmod(0o600)
        if before:
            shutil.chown(pem, "nobody", "nogroup")
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": pem,
            "ssl_key_file": pem,
            "log_connections": "on",
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with LabProcess(
            [*before, str(where / "postgres"), "-D", str(data), *words], directory / "log"
        ) as server:
            wait_for(lambda: "ready to accept connections" in server.log(), "PostgreSQL", 20)
            yield ("127.0.0.1", port)
