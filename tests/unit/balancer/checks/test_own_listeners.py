"""Which backends are this balancer itself. How one address reaches another is config.machine's."""

import pytest

from balancer.checks.own_listeners import OwnListeners
from balancer.config.units import parse_address

OWN = ("10.0.0.7", "2001:db8::7", "127.0.0.1")
LISTENING = [parse_address(text) for text in ("0.0.0.0:80", "[2001:db8::7]:81", "unix:/run/web")]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("10.0.0.7:80", True),
        ("10.0.0.7:81", False),
        ("[2001:db8::7]:81", True),
        ("10.0.0.8:80", False),
        ("unix:/run/web", True),
        ("unix:/run/other", False),
    ],
)
def test_one_of_several_listeners_is_enough(target: str, expected: bool) -> None:
    assert OwnListeners(LISTENING, OWN.__contains__).has(parse_address(target)) is expected


def test_what_is_left_of_a_name() -> None:
    own = OwnListeners(LISTENING, OWN.__contains__)
    hosts = ["10.0.0.7", "10.0.0.8", "2001:db8::7"]
    assert own.others(parse_address("name:80"), hosts) == hosts[1:]
    assert own.others(parse_address("name:81"), hosts) == hosts[:2]
    assert own.others(parse_address("name:82"), hosts) == hosts


def test_the_kernel_is_asked_for_the_ports_that_are_listened_on_only() -> None:
    asked: list[str] = []
    own = OwnListeners(LISTENING, lambda host: bool(asked.append(host)))
    assert not own.has(parse_address("10.0.0.7:8080")) and not asked
    assert not own.has(parse_address("10.0.0.7:80")) and asked == ["10.0.0.7"]
