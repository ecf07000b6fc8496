"""Names beside the loop: one question at a time per name, the last good answer kept."""

import select
import threading

from balancer.discovery.resolver import Resolver, choose


def test_choose_stays_with_the_current_address_while_it_is_an_answer() -> None:
    assert choose(["10.0.0.2", "10.0.0.1"], "10.0.0.1") == "10.0.0.1"
    assert choose(["10.0.0.2", "10.0.0.3"], "10.0.0.1") == "10.0.0.2"
    assert choose(["10.0.0.2"], "") == "10.0.0.2"
    assert choose([], "10.0.0.1") == ""
    assert choose(["fe80::1%eth0", "::1"], "") == "::1"


def collect(resolver: Resolver) -> list[tuple[str, list[str], str]]:
    assert select.select([resolver.wake_fd], [], [], 5)[0]
    return resolver.collect()


def test_an_answer_wakes_and_is_collected_once() -> None:
    resolver = Resolver(lambda name: [f"10.0.0.{len(name)}"])
    assert resolver.ask("web")
    assert collect(resolver) == [("web", ["10.0.0.3"], "")]
    assert resolver.collect() == []
    assert not select.select([resolver.wake_fd], [], [], 0)[0]


def test_a_failure_is_an_answer_too() -> None:
    def fail(name: str) -> list[str]:
        raise OSError("no such host")

    resolver = Resolver(fail)
    resolver.ask("web")
    assert collect(resolver) == [("web", [], "no such host")]
    assert resolver.ask("web")


def test_a_silent_server_holds_up_its_own_name_only() -> None:
    answer = threading.Event()

    def look_up(name: str) -> list[str]:
        if name == "silent":
            assert answer.wait(5)
        return ["10.0.0.1"]

    resolver = Resolver(look_up)
    assert resolver.ask("silent")
    assert resolver.ask("web")
    assert collect(resolver) == [("web", ["10.0.0.1"], "")]
    assert resolver.ask("silent") is False  # still being asked: no second thread
    answer.set()
    assert collect(resolver) == [("silent", ["10.0.0.1"], "")]
    assert resolver.ask("silent") is True
