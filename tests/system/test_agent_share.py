"""The agent of real resizers: one with a full queue is given next to nothing by every policy that looks at weights, and
its share again when there is room."""

import time
from contextlib import ExitStack

from scripts.lab.network import Address, held, text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, Resizer, ini_section
from tests.system.resizer_peer import SLOW, framed, picture

POLICIES = ("leastconn", "roundrobin", "p2c")  # `random` needs too many sessions to be sure of a share
QUEUE = 64  # a resizer's
PROMISED = 3.0  # seconds until a resizer's state counts, agent-interval being 2 s as it is
SESSIONS = 120  # of which a third belongs to each of three


def shares(lb: FileBalancer, addresses: dict[str, Address]) -> dict[str, float]:
    """The part of SESSIONS at once that the full one is given, by policy."""
    found = {}
    for policy, address in addresses.items():
        with held(address, SESSIONS, 20):

            def counts(policy: str = policy) -> dict[str, int] | None:
                rows = {
                    each["name"]: each["sessions"]
                    for each in lb.status()["backends"]
                    if each["pool"] == policy
                }
                return rows if sum(rows.values()) == SESSIONS else None

            found[policy] = wait_for(counts, f"{SESSIONS} sessions of {policy}", 20)["full"] / SESSIONS
        lb.wait_idle(20)
    return found


def test_a_resizer_with_a_full_queue_gets_less_than_a_fifth_and_its_share_back() -> None:
    with ExitStack() as stack:
        names = ("full", "b", "c")
        resizers = {name: stack.enter_context(Resizer(cpus=1, name=name)) for name in names}
        text = ini_section("balancer", agent_path="/agent", workers=1)
        for policy in POLICIES:
            upstream = [f"{text_of(each.address)} name={name}" for name, each in resizers.items()]
            text += ini_section(f"listener {policy}", bind="127.0.0.1:0", pool=policy)
            text += ini_section(f"pool {policy}", upstream=upstream, balance=policy)
        lb = stack.enter_context(FileBalancer(text))
        addresses: dict[str, Address] = {}
        for policy in POLICIES:
            match = lb.wait_line(rf"\bbind address=(\S+):(\d+) .*\blistener={policy}\b")
            addresses[policy] = (match[1], int(match[2]))

        def weights() -> set[int]:
            return {each["share_percent"] for each in lb.status()["backends"] if each["name"] == "full"}

        wait_for(lambda: {each["agent"] for each in lb.status()["backends"]} == {"ready"}, "agents", 20)
        before = shares(lb, addresses)
        assert all(abs(share - 1 / 3) < 0.1 for share in before.values()), before

        full, request = resizers["full"], framed(data=picture(60, 40), **SLOW)
        with held(full.address, 4, 20) as clients:
            for client in clients:
                client.sendall(request * 30)
            wait_for(lambda: full.status()["queued"] >= QUEUE - 1, "a full queue", 20)
            since = time.monotonic()
            wait_for(lambda: weights() == {5}, "its agents to be heard", PROMISED)
            left = time.monotonic() - since
            during = shares(lb, addresses)
            assert all(share < 1 / 3 / 5 for share in during.values()), during
        wait_for(lambda: full.status()["queued"] == 0, "its clients gone, and their pictures with them", 20)
        since = time.monotonic()
        wait_for(lambda: weights() == {100}, "its agents to be heard again", PROMISED)
        back = time.monotonic() - since
        after = shares(lb, addresses)
        assert all(abs(share - 1 / 3) < 0.1 for share in after.values()), after
        print(f"less after {left:.2f} s, its share again after {back:.2f} s; meanwhile {during}")
