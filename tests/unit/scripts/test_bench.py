"""The bench's peers: what is made of the programs that are found."""

from pathlib import Path

import pytest

from scripts.benchlib import peers


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
