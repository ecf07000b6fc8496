"""Certificates for tests, made by openssl."""

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificate(directory: Path, *names: str) -> Path:
    """A PEM file with a key (P-256) and a certificate for these host names that signs itself."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    path = directory / f"{names[0].replace('*', '_')}.pem"
    key = path.with_suffix(".key")
    command = ["openssl", "req", "-x509", "-nodes", "-batch", "-days", "30"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    alternatives = ",".join(f"DNS:{name}" for name in names)
    command += ["-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternatives}"]
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(path)], check=True, capture_output=True, timeout=60
    )
    path.write_text(path.read_text() + key.read_text())
    return path
