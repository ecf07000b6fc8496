"""The bench's peers: what is made of the programs that are found."""

from pathlib import Path

import pytest

from scripts.benchlib import peers
from scripts.benchlib.report import rows_of
from scripts.benchlib.works import Sample


@pytest.mark.parametrize(
    "configured", ["--with-stream --with-threads", "--with-stream=dynamic", "--with-threads"]
)
def test_an_nginx_with_tcp_built_in_loads_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str
) -> None:
    """A module of the distribution would not fit one that was built from source."""
    program, module = tmp_path / "nginx", tmp_path / "module.so"
    program.write_text(f"#!/bin/sh\necho 'configure arguments: {configured}' >&2\n")
    program.chmod(0o755)
    module.touch()
    monkeypatch.setenv("NGINX", str(program))
    monkeypatch.setattr(peers, "STREAM_MODULES", (str(module),))
    scene = peers.Scene(80, [("127.0.0.1", 81)], 2, False, tmp_path)
    command = peers.nginx(scene)
    assert command[0] == str(program)
    has_module = f"load_module {module};" in (tmp_path / "nginx-proxy.conf").read_text()
    assert has_module == ("--with-stream " not in configured + " ")


@pytest.mark.parametrize(("work", "ratio"), [("tls-new", "0.50"), ("tls-flood", "2.00")])
def test_a_row_compares_what_its_work_is_about(work: str, ratio: str) -> None:
    """CPU per request; the wait of kept connections where hellos come at once."""
    ours, peer = (Sample(1.0, p50, p50, 0, cpu, cpu) for p50, cpu in ((60.0, 1.0), (30.0, 2.0)))
    assert [row[-1] for row in rows_of(work, {"ours": [ours], "haproxy": [peer]})] == ["", ratio]
