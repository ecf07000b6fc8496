"""The original Go programs as peers of framed mode: their client through the balancer to our resizers and to their own,
and our client through it to theirs. Runs where the environment names the binaries (scripts/lab/original.py)."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.network import Address
from scripts.lab.original import OriginalServer, program, run_client
from tests.system.client_fixture import ClientFixture
from tests.system.harness import Balancer, Resizer

PICTURES = 60  # more than `pipeline`
BACKENDS = 3

pytestmark = pytest.mark.skipif(
    not (program("frontend") and program("backend")),
    reason="GOWORK_FRONTEND and GOWORK_BACKEND do not name the original programs",
)


@pytest.fixture(params=["resizers", "original backends"])
def backends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Address]]:
    with ExitStack() as stack:
        if request.param == "resizers":
            yield [stack.enter_context(Resizer(name=f"r{n}", cpus=1)).address for n in range(BACKENDS)]
        else:
            yield [stack.enter_context(OriginalServer(tmp_path)).address for _ in range(BACKENDS)]


def framed(backends: list[Address]) -> Balancer:
    return Balancer(upstreams=backends, mode="framed", frame="gowork", order="strict")


def saved_by_original(address: Address, client: ClientFixture, name: str) -> dict[str, bytes]:
    results = client.directory / name
    run_client(address, client.pictures, results, "--maxconns=1")
    return {path.name: path.read_bytes() for path in results.iterdir()}


def assert_all_used(lb: Balancer, requests: int) -> None:
    counts = [backend["sessions_total"] for backend in lb.status()["backends"]]
    assert sum(counts) == requests
    assert min(counts) >= requests / BACKENDS / 2, counts


def test_the_original_client_gets_its_pictures_over_one_connection(
    backends: list[Address], tmp_path: Path
) -> None:
    """The files are those of a run without the balancer."""
    client = ClientFixture(tmp_path)
    client.fill(PICTURES - 10)
    client.fill(10, format="PNG")
    direct = saved_by_original(backends[0], client, "direct")
    assert len(direct) == PICTURES
    with framed(backends) as lb:
        assert saved_by_original(lb.address, client, "through") == direct
        assert lb.status()["totals"]["accepted_total"] == 1
        assert_all_used(lb, PICTURES)


def test_our_client_gets_its_pictures_from_original_backends(tmp_path: Path) -> None:
    """They send no ID back. The second run goes over the connections that the first one has left."""
    client = ClientFixture(tmp_path)
    client.fill(PICTURES)
    with ExitStack() as stack:
        backends = [stack.enter_context(OriginalServer(tmp_path)).address for _ in range(BACKENDS)]
        lb = stack.enter_context(framed(backends))
        assert client.run("{}:{}".format(*backends[0]), "--maxconns=1").code == 0
        direct = client.saved()
        assert len(direct) == PICTURES
        for attempt in (1, 2):
            client.results = tmp_path / f"through-{attempt}"
            assert client.run("{}:{}".format(*lb.address), "--maxconns=1").code == 0
            assert client.saved() == direct
            assert_all_used(lb, attempt * PICTURES)
        assert all(backend["connect_failures_total"] == 0 for backend in lb.status()["backends"])


def test_a_hundred_connections_of_the_original_client(backends: list[Address], tmp_path: Path) -> None:
    """Its own headline work, without picture work: every request has its reply."""
    client = ClientFixture(tmp_path)
    client.fill(3)
    with framed(backends) as lb:
        done = run_client(
            lb.address, client.pictures, tmp_path / "none", "--minconns=100", "--dry-run", "--times=2"
        )
        status = lb.wait_idle(10)
        assert sum(backend["sessions_total"] for backend in status["backends"]) == 600
        assert {end: count for end, count in status["totals"]["ends"].items() if count} == {"--": 200}
        assert done.megabytes_received > 0.9 * done.megabytes_sent  # dry replies are as long as dry requests
