"""Other decoders of pictures, as witnesses of what a file shows: a browser's, asked through a canvas, and ImageMagick's.

A picture is what it shows in RGBA, upright and in sRGB. A file that a decoder refuses is None.
"""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from PIL import Image

_PAGE = b"""<!doctype html><script>
(async () => {
  const count = await (await fetch("/count")).json();
  for (let i = 0; i < count; i++) {
    let size = "", body = null;
    try {
      const image = new Image();
      image.src = "/file/" + i;
      await image.decode();
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const context = canvas.getContext("2d", {colorSpace: "srgb"});
      context.drawImage(image, 0, 0);
      body = context.getImageData(0, 0, canvas.width, canvas.height).data;
      size = "w=" + canvas.width + "&h=" + canvas.height;
    } catch (error) { }
    await fetch("/pixels/" + i + "?" + size, {method: "POST", body});
  }
  await fetch("/done", {method: "POST"});
})();
</script>"""


def browser() -> str | None:
    """The path of Chromium, None where it is not installed."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def imagemagick() -> str | None:
    """The path of ImageMagick's program, None where it is not installed."""
    for path in ("/usr/bin/magick", "/usr/bin/convert"):
        if os.access(path, os.X_OK):
            return path
    return shutil.which("magick")


def seen_in_browser(files: list[bytes], timeout: float) -> list[Image.Image | None]:
    """What Chromium shows of each file. Raises TimeoutError when it takes longer than `timeout` seconds for all."""
    found: list[Image.Image | None] = [None] * len(files)
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, body: bytes, kind: str = "application/octet-stream") -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            parts = self.path.split("/")
            if parts[1] == "count":
                self._answer(json.dumps(len(files)).encode(), "application/json")
            elif parts[1] == "file":
                self._answer(files[int(parts[2])])
            else:
                self._answer(_PAGE, "text/html")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            url = urlsplit(self.path)
            size = parse_qs(url.query)
            if url.path == "/done":
                done.set()
            elif body:
                sides = int(size["w"][0]), int(size["h"][0])
                found[int(url.path.split("/")[2])] = Image.frombytes("RGBA", sides, body)
            self._answer(b"")

        def log_message(self, *_: object) -> None:
            """No lines on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--force-color-profile=srgb", f"--user-data-dir={profile}"]
        program = subprocess.Popen(
            [str(browser()), *options, f"http://127.0.0.1:{server.server_port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if not done.wait(timeout):
                raise TimeoutError(f"the browser took longer than {timeout} s")
        finally:
            os.killpg(program.pid, 9)
            program.wait()
            server.shutdown()
            server.server_close()
    return found


def seen_by_imagemagick(file: bytes) -> Image.Image | None:
    """What ImageMagick shows of the first picture of `file`, upright, without conversion of colours."""
    with tempfile.TemporaryDirectory() as room:
        source, made = Path(room, "source"), Path(room, "made.rgba")
        source.write_bytes(file)
        said = subprocess.run(
            [
                str(imagemagick()),
                f"{source}[0]",
                *("-auto-orient", "-coalesce", "-colorspace", "sRGB", "-depth", "8"),
                *("-print", "%w %h", f"rgba:{made}"),
            ],
            capture_output=True,
            timeout=60,
        )
        if said.returncode or not made.exists():
            return None
        width, height = said.stdout.split()[:2]
        return Image.frombytes("RGBA", (int(width), int(height)), made.read_bytes())
