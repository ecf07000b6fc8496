"""The counterparts of our examples are what HAProxy and nginx accept; skips where one is missing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.lab.network import free_port
from tests.authority import Authority

EXAMPLES = Path(__file__).resolve().parents[2] / "conf" / "examples"
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.ini"))


def copied(name: str, directory: Path) -> Path:
    """The file with a certificate that there is, and with ports that are free: nginx binds them for its test."""
    pem = directory / "mqtt.pem"
    pem.write_bytes(Authority().issue("mqtt.example"))
    text = (EXAMPLES / name).read_text().replace("/etc/balancer/mqtt.pem", str(pem))
    path = directory / name
    path.write_text(re.sub(r"listen \d+", lambda _: f"listen 127.0.0.1:{free_port()}", text))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_haproxy(name: str, tmp_path: Path) -> None:
    if not shutil.which("haproxy"):
        pytest.skip("haproxy is not installed")
    path = copied(f"{name}.haproxy.cfg", tmp_path)
    found = subprocess.run(["haproxy", "-c", "-f", str(path)], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0 and "WARNING" not in found.stderr, found.stderr


@pytest.mark.parametrize("name", NAMES)
def test_nginx(name: str, tmp_path: Path) -> None:
    if not shutil.which("nginx") or not MODULE.exists():
        pytest.skip("nginx with its stream module is not installed")
    path = copied(f"{name}.nginx.conf", tmp_path)
    path.write_text(f"load_module {MODULE};\npid {tmp_path}/pid;\nerror_log stderr;\n" + path.read_text())
    command = ["nginx", "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    if "ssl_alpn" in found.stderr and "unknown directive" in found.stderr:
        pytest.skip("this nginx is older than ssl_alpn (1.21.4)")
    assert found.returncode == 0, found.stderr
