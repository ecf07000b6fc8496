"""PostgreSQL clients routed by name, with psql and a real server: TLS begins within the protocol, and goes through."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.network import Address, text_of
from tests.authority import Authority
from tests.system.harness import FileBalancer, ini_section
from tests.system.postgres_server import postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    with postgres_server("a.example", "b.example") as address:
        yield address


def psql(address: Address, host: str, query: str, **parameters: object) -> subprocess.CompletedProcess[str]:
    if not shutil.which("psql"):
        pytest.skip("psql is not installed")
    given: dict[str, object] = {
        "host": host, "hostaddr": address[0], "port": address[1], "user": "postgres", "dbname": "postgres",
        "sslmode": "require", "connect_timeout": 30,
    }  # fmt: skip
    words = " ".join(f"{key}={value}" for key, value in (given | parameters).items())
    return subprocess.run(
        ["psql", "-X", "-A", "-t", "-d", words, "-c", query], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def lb(server: Address) -> Iterator[FileBalancer]:
    text = ini_section(
        "listener db",
        bind="127.0.0.1:0",
        preread="postgres",
        route=["sni a.example -> a", "sni *.b.example -> b"],
        preread_timeout="5s",
    )
    text += ini_section("pool a", upstream=f"{text_of(server)} name=a", check="none")
    text += ini_section("pool b", upstream=f"{text_of(server)} name=b", check="none")
    with FileBalancer(text, loglevel=1) as lb:
        yield lb


def test_psql_is_routed_by_the_name_of_its_host_and_talks_tls_to_the_server(lb: FileBalancer) -> None:
    query = "select ssl, length(repeat('x', 1000000)) from pg_stat_ssl where pid = pg_backend_pid()"
    for host, pool in (("a.example", "a"), ("x.b.example", "b")):
        found = psql(lb.address, host, query)
        assert (found.stdout.strip(), found.stderr) == ("t|1000000", "")
        # Either side closes with the close_notify of the other one unread, which resets the connection.
        lb.wait_line(
            rf" session client=\S+ sni={host} listener=db pool={pool} backend={pool} end=(--|CD|SD) "
        )
    lb.check_at_rest()


def test_a_big_result_arrives_whole(lb: FileBalancer) -> None:
    found = psql(lb.address, "a.example", "select repeat('0123456789', 500000)")
    assert found.stdout.strip() == "0123456789" * 500_000


@pytest.mark.parametrize(
    ("host", "parameters", "said"),
    [
        ("c.example", {}, 'reason="no-route"'),
        ("a.example", {"sslsni": 0}, 'reason="no-route"'),
        ("a.example", {"sslmode": "disable"}, 'reason="no SSLRequest: begins with '),
    ],
)
def test_others_are_refused(lb: FileBalancer, host: str, parameters: dict[str, object], said: str) -> None:
    assert psql(lb.address, host, "select 1", **parameters).returncode != 0
    lb.wait_line(rf" session client=\S+ .*end=PR .* {said}")
    lb.check_at_rest()


def test_tls_ends_here_and_the_server_gets_none(server: Address, tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "a.pem").write_bytes(authority.issue("a.example"))
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    text = ini_section(
        "listener db", bind="127.0.0.1:0", preread="postgres", tls_cert=tmp_path / "a.pem", pool="a"
    )
    text += ini_section("pool a", upstream=text_of(server), check="none")
    with FileBalancer(text, loglevel=1) as lb:
        query = "select ssl, length(repeat('x', 1000000)) from pg_stat_ssl where pid = pg_backend_pid()"
        verified = {"sslmode": "verify-full", "sslrootcert": tmp_path / "ca.pem"}
        found = psql(lb.address, "a.example", query, **verified)
        assert (found.stdout.strip(), found.stderr) == ("f|1000000", "")
        assert psql(lb.address, "b.example", query, **verified).returncode != 0
        lb.wait_line(
            r" session client=\S+ sni=a\.example tls=TLSv1\.3 .*listener=db pool=a .*end=(--|CD|SD) "
        )
        lb.check_at_rest()


def test_many_at_once_over_two_workers(lb: FileBalancer) -> None:
    if not shutil.which("psql"):
        pytest.skip("psql is not installed")
    words = f"host=a.example hostaddr={lb.address[0]} port={lb.address[1]} user=postgres dbname=postgres sslmode=require"
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    ["psql", "-X", "-A", "-t", "-d", words, "-c", f"select {number}"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for number in range(12)
        ]
        answers = [one.communicate(timeout=120)[0].strip() for one in running]
    assert answers == [str(number) for number in range(12)]
    lb.check_at_rest()
