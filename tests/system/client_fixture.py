"""The fixture of the client's system tests: a directory of pictures, the program, and the files it left."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.system.fake_resizer import picture

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "workers.client"]
# The program under an audit hook that logs every file it creates or renames, by the names passed to the system calls.
WATCHED = """
import os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def hook(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        os.write(log, f"open {args[0]!r}\\n".encode("utf-8", "backslashreplace"))
    elif event in ("os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove"):
        os.write(log, f"{event} {args[:2]!r}\\n".encode("utf-8", "backslashreplace"))
sys.addaudithook(hook)
sys.argv = ["resize-client", *sys.argv[2:]]
from workers.client.__main__ import main
sys.exit(main())
"""


@dataclass
class ClientExit:
    code: int
    out: str
    err: str


class ClientFixture:
    """`pictures` in, `results` out, below one temporary directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pictures = directory / "pictures"
        self.results = directory / "results"
        self.pictures.mkdir()

    def fill(self, count: int, folder: str = "", format: str = "JPEG") -> None:
        """`count` pictures of 40x30, all different."""
        (self.pictures / folder).mkdir(parents=True, exist_ok=True)
        ending = {"JPEG": "jpg", "PNG": "png", "GIF": "gif"}[format]
        for number in range(count):
            path = self.pictures / folder / f"p{number:04}.{ending}"
            path.write_bytes(picture(40, 30, format, number))

    def arguments(self, address: str, *more: str) -> list[str]:
        base = ["--proxy", address, "--input", str(self.pictures), "--output", str(self.results)]
        return [*base, "-w", "20", "-h", "10", *more]

    def local_arguments(self, *more: str) -> list[str]:
        base = ["--local", "--input", str(self.pictures), "--output", str(self.results)]
        return [*base, "-w", "20", "-h", "10", *more]

    def run_local(self, *more: str, timeout: float = 120) -> ClientExit:
        return self._done([*COMMAND, *self.local_arguments(*more)], timeout)

    def start_local(self, *more: str) -> "subprocess.Popen[str]":
        return self._start([*COMMAND, *self.local_arguments(*more)])

    def run(self, address: str, *more: str, timeout: float = 60) -> ClientExit:
        return self._done([*COMMAND, *self.arguments(address, *more)], timeout)

    def run_watched(self, address: str, *more: str, timeout: float = 60) -> tuple[ClientExit, list[str]]:
        """As `run`, and one line for each file that was created, renamed or removed."""
        log = self.directory / "watched.log"
        command = [sys.executable, "-c", WATCHED, str(log), *self.arguments(address, *more)]
        return self._done(command, timeout), log.read_text().splitlines()

    def start(self, address: str, *more: str) -> "subprocess.Popen[str]":
        return self._start([*COMMAND, *self.arguments(address, *more)])

    def _start(self, command: list[str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def _done(self, command: list[str], timeout: float) -> ClientExit:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            errors="replace",
        )
        assert "Traceback" not in done.stderr, done.stderr
        return ClientExit(done.returncode, done.stdout, done.stderr)

    def saved(self) -> dict[str, bytes]:
        """The content of every file below the results by relative path, without the journal."""
        found = {}
        for folder, _, names in os.walk(self.results):
            for name in names:
                path = os.path.join(folder, name)
                if name != ".resize-client.journal":
                    found[os.path.relpath(path, self.results)] = Path(path).read_bytes()
        return found

    def parts(self) -> list[str]:
        """Partial files below the results."""
        return [path for path in self.saved() if path.endswith(".part")]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RESIZE_CLIENT_")}
