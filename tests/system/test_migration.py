"""docs/MIGRATION.md: what stands on HAProxy's and nginx's side of each row is what they accept.

Skips where one is missing; tests/unit/test_migration.py has our side."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.lab.network import free_port
from tests.documents import ROOT, chapters, table_rows, with_files

PAGE = ROOT / "docs" / "MIGRATION.md"
CHAPTERS = chapters(PAGE)
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
HAPROXY = """\
global
{global}
defaults
  mode tcp
  timeout connect 5s
  timeout client 10m
  timeout server 10m
{defaults}
frontend main
  bind :8080 {bind}
{frontend}
  default_backend web
backend web
{backend}
  server a 10.0.0.1:80 {server}
  server b 10.0.0.2:80 check
"""
# Names in the order of the page's chapters.
HAPROXY_PLACES = {
    "global": "global",
    "defaults": "defaults",
    "words of a bind line": "bind",
    "frontend": "frontend",
    "backend": "backend",
    "words of a server line": "server",
}
NGINX = """\
{main}
load_module {module};
events {{}}
stream {{
  limit_conn_zone $binary_remote_addr zone=clients:10m;
  upstream web {{
    {upstream}
    server 10.0.0.1:80;
  }}
  server {{
    {server}
    proxy_pass web;
  }}
}}
"""
NEEDS_HAPROXY = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
NEEDS_NGINX = pytest.mark.skipif(
    shutil.which("nginx") is None or not MODULE.exists(),
    reason="nginx with its stream module is not installed",
)


def complaint(command: list[str], file: Path, text: str, directory: Path) -> str:
    """What a program says of a file that it does not take; empty when it takes it."""
    file.write_text(with_files(text, directory))
    found = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)
    return found.stdout + found.stderr if found.returncode else ""


def haproxy(directory: Path, **pieces: str) -> str:
    text = HAPROXY.format(**{place: pieces.get(place, "") for place in HAPROXY_PLACES.values()})
    return complaint(["haproxy", "-c", "-f"], directory / "haproxy.cfg", text, directory)


def nginx(directory: Path, **pieces: str) -> str:
    if not re.search(r"\blisten\b", pieces.get("server", "")):
        pieces["server"] = f"listen unix:{directory}/nginx.sock; {pieces.get('server', '')}"
    # The test of a configuration binds: the ports of the page may be taken.
    pieces["server"] = re.sub(r"127.0.0.1:\d+", lambda _: f"127.0.0.1:{free_port()}", pieces["server"])
    # It makes the pid file as well.
    main = pieces.pop("main", f"pid {directory}/pid;").replace("/run/", f"{directory}/")
    pieces["main"] = main if "pid " in main else f"{main} pid {directory}/pid;"
    text = NGINX.format(module=MODULE, **{"upstream": ""} | pieces)
    command = ["nginx", "-t", "-e", "stderr", "-p", str(directory), "-c"]
    return complaint(command, directory / "nginx.conf", text, directory)


@NEEDS_HAPROXY
@pytest.mark.parametrize("chapter", HAPROXY_PLACES)
def test_haproxy_takes_each_row(chapter: str, tmp_path: Path) -> None:
    place = HAPROXY_PLACES[chapter]
    for lines, _ in table_rows(CHAPTERS[f"HAProxy: {chapter}"]):
        piece = (" " if place in ("bind", "server") else "\n").join(lines)
        assert haproxy(tmp_path, **{place: piece}) == "", lines
    assert haproxy(tmp_path, **{place: "no-such-word"})


@NEEDS_NGINX
@pytest.mark.parametrize("chapter", ["main", "server", "upstream"])
def test_nginx_takes_each_row(chapter: str, tmp_path: Path) -> None:
    for lines, _ in table_rows(CHAPTERS[f"nginx: {chapter}"]):
        assert nginx(tmp_path, **{chapter: "\n".join(lines)}) == "", lines
    assert nginx(tmp_path, **{chapter: "no_such_word;"})


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@NEEDS_HAPROXY
def test_haproxy_takes_the_example(tmp_path: Path) -> None:
    assert complaint(["haproxy", "-c", "-f"], tmp_path / "haproxy.cfg", block("haproxy"), tmp_path) == ""


@NEEDS_NGINX
def test_nginx_takes_the_example(tmp_path: Path) -> None:
    text = block("nginx").replace("listen 8080", f"listen 127.0.0.1:{free_port()}")
    text = f"load_module {MODULE};\npid {tmp_path}/pid;\nevents {{}}\n{text}"
    command = ["nginx", "-t", "-e", "stderr", "-p", str(tmp_path), "-c"]
    assert complaint(command, tmp_path / "nginx.conf", text, tmp_path) == ""
