"""The original Go programs (AgentCoop go-work-tcpbalancer) as peers, where the environment names their binaries.

    GOWORK_FRONTEND   the client      GOWORK_BACKEND   the resizer      GOWORK_PROXY   the balancer

RULES: started in a directory of their own, since they write beside themselves. The proxy needs `--maxconns`: without it
it refuses every client. A client that has lost its connection counts its job as done: compare the bytes as well.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lab.network import Address, accepts, free_port, text_of
from scripts.lab.process import LabProcess
from scripts.lab.waiting import PATIENCE, wait_for

MAXCONNS = 4096


def program(role: str) -> str:
    """The path of the binary for "frontend", "backend" or "proxy"; empty when the environment does not name one."""
    return os.environ.get(f"GOWORK_{role.upper()}", "")


class OriginalServer(LabProcess):
    """A backend, or with upstreams the proxy, on a port of 127.0.0.1."""

    def __init__(self, directory: Path, upstreams: Sequence[Address] = ()) -> None:
        self.address: Address = ("127.0.0.1", free_port())
        role = "proxy" if upstreams else "backend"
        words = [program(role), "-p", str(self.address[1]), "--loglevel=0"]
        if upstreams:
            words += [f"--maxconns={MAXCONNS}", *(f"-u{text_of(upstream)}" for upstream in upstreams)]
        else:
            words.append("--name=127.0.0.1")
        super().__init__(words, directory / f"{role}-{self.address[1]}.log", cwd=directory)

    def __enter__(self) -> "OriginalServer":
        self.start()
        wait_for(lambda: accepts(self.address), "the original program's port", 10)
        return self


@dataclass(frozen=True)
class OriginalRun:
    """What the original client says at its end: jobs (a connection that sends the whole directory) a second, bytes."""

    jobs_per_s: float
    megabytes_sent: float
    megabytes_received: float


def run_client(
    address: Address, source: Path, results: Path, *words: str, seconds: float = 60.0
) -> OriginalRun:
    """Send the JPEG and PNG pictures in `source` to be resized to 40x30. Raises TimeoutExpired."""
    results.mkdir(exist_ok=True)
    command = [program("frontend"), "--proxy", text_of(address), f"--input={source}", f"--output={results}"]
    command += ["-w", "40", "-h", "30", "--loglevel=0", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * PATIENCE, check=True)
    sent, received, rate = (
        float(re.findall(rf"{what}: ([\d.]+)", done.stdout)[0])
        for what in ("bytes sent", "bytes received", "Requests Per Second")
    )
    return OriginalRun(rate, sent, received)
