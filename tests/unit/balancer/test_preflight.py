"""What --check-config finds out about the machine: sentences for what stops the balancer, notes for what may."""

import socket
from pathlib import Path

import pytest

from balancer.config.option import CommandLineAnswer, ConfigError
from balancer.config.units import Address
from balancer.configuration import parse
from balancer.preflight import Preflight
from balancer.prefork.preflight import Machine

ADDRESSES = {
    "backend": ["192.0.2.1"],
    "both": ["192.0.2.1", "127.0.0.1"],
    "itself": ["127.0.0.1", "127.0.0.2"],
}


def lookup(name: Address) -> tuple[Address, ...]:
    if name.host not in ADDRESSES:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return tuple(Address("inet", host, name.port) for host in ADDRESSES[name.host])


ROOT = Machine(0, may_bind=lambda port: True)


def notes(*argv: str, machine: Machine = ROOT) -> list[str]:
    """What --check-config notes."""
    with pytest.raises(CommandLineAnswer) as answer:
        parse([*argv, "--check-config"], {}, try_out=Preflight(machine, lookup, 1.0))
    *found, last = str(answer.value).splitlines()
    assert last == "balancer: configuration OK"
    return [note.removeprefix("balancer: note: ") for note in found]


def refusal(*argv: str, machine: Machine = ROOT) -> str:
    with pytest.raises(ConfigError) as refused:
        parse([*argv, "--check-config"], {}, try_out=Preflight(machine, lookup, 1.0))
    return str(refused.value)


def test_nothing_to_say() -> None:
    assert notes("-p", "9090", "-u", "backend:9090", "-u", "192.0.2.1:80") == []


def test_only_a_check_looks_at_the_machine() -> None:
    read = parse(["-u", "nowhere:80", "--log", "/absent/log"], {}, try_out=Preflight(ROOT, lookup, 1.0))
    assert read.notes == ()


def test_a_name_without_address_is_noted() -> None:
    assert notes("-u", "nowhere:80") == ["--upstream: nowhere:80 has no address: Name or service not known"]


def test_a_name_that_is_this_balancer() -> None:
    sentence = "--upstream: itself:9090 is 127.0.0.1 and 127.0.0.2, where this balancer itself listens"
    assert refusal("-u", "itself:9090") == sentence
    assert notes("-u", "both:9090") == [
        "--upstream: of the addresses of both:9090, this balancer itself listens on 127.0.0.1"
    ]
    assert notes("-u", "itself:80") == notes("-u", "itself:9090", "--bind", "127.0.0.1", "-p", "1") == []


def test_a_set_is_one_item_however_many_slots_it_has() -> None:
    assert notes("-u", "dns:backend:80 slots=3", "-u", "srv:_web._tcp.nowhere slots=2") == []
    assert notes("-u", "dns:backend:80 slots=3", "-u", "nowhere:80", "-u", "dns:nowhere:81 slots=2") == [
        "--upstream: nowhere:80 has no address: Name or service not known",
        "--upstream: nowhere:81 has no address: Name or service not known",
    ]


def test_source_addresses_of_another_machine_are_noted() -> None:
    assert notes("-u", "192.0.2.1:80 source=127.0.0.1,192.0.2.9") == [
        "--upstream: source 192.0.2.9 is no address of this machine"
    ]


def test_addresses_to_listen_on(tmp_path: Path) -> None:
    upstream = ("-u", "192.0.2.1:80")
    assert notes(*upstream, "--bind", "192.0.2.7") == ["--bind: 192.0.2.7:9090 is no address of this machine"]
    for option in ("--bind", "--metrics"):
        path = f"{tmp_path}/absent/web"
        sentence = f"{option}: {path} cannot be made: {tmp_path}/absent is missing"
        assert refusal(*upstream, f"{option}=unix:{path}") == sentence
    assert notes(*upstream, "--bind", "unix:@web", "--metrics", f"unix:{tmp_path}/metrics") == []


@pytest.mark.parametrize("option", ["log", "pidfile"])
def test_files_that_cannot_be_written(option: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/absent/file"
    sentence = f"--{option}: {path} cannot be made: {tmp_path}/absent is missing"
    assert refusal("-u", "192.0.2.1:80", f"--{option}", path) == sentence
    assert not (tmp_path / "absent").exists()
    assert notes("-u", "192.0.2.1:80", f"--{option}", f"{tmp_path}/file") == []
    assert not (tmp_path / "file").exists()


def test_the_place_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "b.ini"
    path.write_text("[balancer]\npidfile = /absent/pid\nupstream =\n    backend:80\n    nowhere:80\n")
    assert refusal("-c", str(path)) == f"{path}:2: pidfile: /absent/pid cannot be made: /absent is missing"
    [note] = notes("-c", str(path), "--pidfile=")
    assert note.startswith(f"{path}:5: upstream: nowhere:80 has no address")


def test_what_takes_privileges_is_noted() -> None:
    plain = Machine(1000, may_bind=lambda port: port >= 1024)
    argv = ("-u", "192.0.2.1:80", "-p", "80", "--user", "daemon", "--metrics", "127.0.0.1:81")
    assert notes(*argv, machine=plain) == [
        "--user: only root may become user daemon",
        "--port: port 80 takes root, or the capability CAP_NET_BIND_SERVICE",
        "--metrics: port 81 takes root, or the capability CAP_NET_BIND_SERVICE",
    ]
    assert notes(*argv, machine=Machine(0, may_bind=lambda port: True)) == []


def test_a_machine_without_ipv6() -> None:
    bare = Machine(0, has_family=lambda address: address.family != "inet6")
    sentence = "--bind: [::1]:9090: this machine has no IPv6"
    assert refusal("-u", "192.0.2.1:80", "--bind", "::1", machine=bare) == sentence
    assert notes("-u", "[2001:db8::1]:80", machine=bare) == [
        "--upstream: [2001:db8::1]:80: this machine has no IPv6"
    ]
