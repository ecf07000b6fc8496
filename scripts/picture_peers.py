"""Picture services over HTTP: ours, thumbor, and a server on sharp, each with one process for each core.

RULES: a peer that is not installed is named with the reason and how to install it. Each has its defaults otherwise.
Ours and the sharp server take the picture in the request. thumbor takes it from a directory, so it receives no bodies,
which is in its favour.

    sharp     $NODE_PATH, else ./node_modules     npm install sharp
    thumbor   $THUMBOR, else $PATH                pip install thumbor
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL

from scripts.lab.network import accepts, free_port
from scripts.lab.process import ROOT, LabProcess, children_of, clean_environment, title_of
from scripts.lab.waiting import wait_for

CPUS = len(os.sched_getaffinity(0))
BOOT_SECONDS = 30.0
THUMBOR = """
LOADER = "thumbor.loaders.file_loader"
FILE_LOADER_ROOT_PATH = {folder!r}
STORAGE = "thumbor.storages.no_storage"
RESULT_STORAGE = None
QUALITY = 75
"""


class PicturePeer:
    """One service. `folder` holds the pictures by name."""

    name = "ours"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.process: LabProcess | None = None

    def missing(self) -> str:
        """Why it cannot be started, or ""."""
        return ""

    def version(self) -> str:
        """Of what is measured."""
        return f"CPython {platform.python_version()}, Pillow {PIL.__version__}"

    def command(self) -> list[str]:
        """What starts it at `port`."""
        words = ["--bind=127.0.0.1", f"--port={self.port}", f"--cpus={CPUS}", "--name=bench"]
        return [sys.executable, "-m", "workers.resizer", *words]

    def environment(self) -> Mapping[str, str]:
        return {}

    def request(self, picture: str, size: tuple[int, int], file_format: str = "") -> bytes:
        """An HTTP request for `picture` at `size`."""
        body = (self.folder / picture).read_bytes()
        target = f"/resize?w={size[0]}&h={size[1]}" + (f"&format={file_format}" if file_format else "")
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def children(self) -> list[int]:
        """Its processes without the first."""
        return children_of(self.pid)

    def victims(self) -> tuple[int, int]:
        """Pids: the process to be killed, which has clients, and the one to be stopped beside it."""
        fronts = [pid for pid in self.children() if ": front" in title_of(pid)]
        cpus = [pid for pid in self.children() if ": cpu" in title_of(pid)]
        return fronts[0], cpus[0]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Started and accepting."""
        self.port = free_port()
        environment = clean_environment(dict(self.environment()))
        with LabProcess(self.command(), self.folder / f"{self.name}.log", environment=environment) as process:
            self.process = process
            wait_for(lambda: accepts(("127.0.0.1", self.port)), f"{self.name} accepts", BOOT_SECONDS)
            yield


class SharpServer(PicturePeer):
    """A Node cluster on sharp."""

    name = "sharp server"

    def _modules(self) -> str:
        return os.environ.get("NODE_PATH", "") or str(ROOT / "node_modules")

    def missing(self) -> str:
        node = shutil.which("node")
        if node is None:
            return "no node"
        words = [node, "-e", "require('sharp')"]
        done = subprocess.run(words, env=clean_environment(dict(self.environment())), capture_output=True)
        return "no sharp: npm install sharp, and NODE_PATH=.../node_modules" if done.returncode else ""

    def version(self) -> str:
        program = "const v = require('sharp').versions; console.log(v.sharp, 'libvips', v.vips, 'node', process.version)"
        return self._output(shutil.which("node") or "node", "-e", program)

    def _output(self, *words: str) -> str:
        environment = clean_environment(dict(self.environment()))
        return subprocess.run(words, env=environment, capture_output=True, text=True).stdout.strip()

    def command(self) -> list[str]:
        program = str(ROOT / "scripts" / "pipelines" / "sharp_server.cjs")
        return [shutil.which("node") or "node", program, str(self.port), str(CPUS)]

    def environment(self) -> Mapping[str, str]:
        return {"NODE_PATH": self._modules()}

    def victims(self) -> tuple[int, int]:
        first, second = self.children()[:2]
        return first, second


class Thumbor(SharpServer):
    """thumbor with tornado's processes."""

    name = "thumbor"

    def _program(self) -> str | None:
        return os.environ.get("THUMBOR") or shutil.which("thumbor")

    def missing(self) -> str:
        return "" if self._program() else "no thumbor: pip install thumbor, and THUMBOR=.../bin/thumbor"

    def version(self) -> str:
        return self._output(self._program() or "thumbor", "--version").removeprefix("Thumbor").strip(" v\n")

    def command(self) -> list[str]:
        settings = self.folder / "thumbor.conf"
        settings.write_text(THUMBOR.format(folder=str(self.folder)))
        words = ["-i", "127.0.0.1", "-p", str(self.port), "-c", str(settings), "-l", "critical"]
        return [self._program() or "thumbor", *words, f"--processes={CPUS}"]

    def request(self, picture: str, size: tuple[int, int], file_format: str = "") -> bytes:
        filters = f"filters:format({file_format})/" if file_format else ""
        target = f"/unsafe/{size[0]}x{size[1]}/{filters}{picture}"
        return f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


PEERS = {"ours": PicturePeer, "thumbor": Thumbor, "sharp": SharpServer}


def found(names: Sequence[str], folder: Path) -> list[PicturePeer]:
    """The peers of `names` that are installed; the others are told on standard error."""
    peers = []
    for name, kind in PEERS.items():
        if name in names:
            peer = kind(folder)
            if reason := peer.missing():
                print(f"{peer.name}: not measured: {reason}", file=sys.stderr)
            else:
                peers.append(peer)
    return peers
