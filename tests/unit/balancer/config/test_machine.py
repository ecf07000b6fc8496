"""What the machine says of addresses, names and files."""

import os
import socket
import threading
from pathlib import Path

import pytest

from balancer.config.machine import (
    has_family,
    is_own_address,
    look_up_all,
    may_bind,
    reaches,
    why_no_directory,
    why_no_socket,
    why_not_writable,
)
from balancer.config.units import Address, parse_address
from scripts.lab.network import has_ipv6

OWN = ("10.0.0.7", "2001:db8::7", "127.0.0.1", "127.0.0.2", "::1")


@pytest.mark.parametrize(
    ("target", "listening", "expected"),
    [
        ("10.0.0.1:80", "10.0.0.1:80", True),
        ("10.0.0.1:80", "10.0.0.1:81", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),  # the kernel chooses: another port each time
        ("127.0.0.2:80", "0.0.0.0:80", True),
        ("127.0.0.2:80", "127.0.0.1:80", False),
        ("10.0.0.7:80", "0.0.0.0:80", True),
        ("10.0.0.8:80", "0.0.0.0:80", False),
        ("10.0.0.7:80", "[::]:80", False),  # IPV6_V6ONLY
        ("[2001:db8::7]:80", "[::]:80", True),
        ("[2001:db8::7]:80", "0.0.0.0:80", False),
        ("[2001:db8::8]:80", "[::]:80", False),
        ("[::1]:80", "[::]:80", True),
        ("0.0.0.0:80", "0.0.0.0:80", True),
        ("*:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "10.0.0.7:80", False),
        ("[::]:80", "[::1]:80", True),
        ("[::]:80", "0.0.0.0:80", False),
        ("[::ffff:10.0.0.7]:80", "0.0.0.0:80", True),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", True),
        ("localhost:80", "0.0.0.0:80", True),
        ("localhost:80", "[::]:80", True),
        ("localhost:80", "10.0.0.7:80", False),
        ("backend:80", "0.0.0.0:80", False),
        ("unix:/run/../run/a", "unix:/run/a", True),
        ("unix:/run/b", "unix:/run/a", False),
        ("unix:@a", "unix:@a", True),
        ("unix:@a", "unix:./@a", False),
        ("unix:/run/a", "0.0.0.0:80", False),
    ],
)
def test_which_targets_come_to_a_listener(target: str, listening: str, expected: bool) -> None:
    assert reaches(parse_address(target), parse_address(listening), OWN.__contains__) is expected


def test_a_socket_behind_a_link_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    here, there = (Address("unix", path=f"{tmp_path}/{path}") for path in ("a.sock", "link/a.sock"))
    assert reaches(there, here) and reaches(here, there)


def test_a_socket_with_two_names_is_the_same(tmp_path: Path) -> None:
    here, there = (Address("unix", path=f"{tmp_path}/{path}") for path in ("a.sock", "b.sock"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(here.path)
        assert not reaches(there, here)
        os.link(here.path, there.path)
        assert reaches(there, here) and reaches(here, there)


def test_own_addresses() -> None:
    assert all(map(is_own_address, ("127.0.0.1", "127.9.9.9", "::1")))
    foreign = ("192.0.2.1", "2001:db8::1", "255.255.255.255", "224.0.0.1", "ff02::1", "fe80::1%lo")
    assert not any(map(is_own_address, foreign))


def test_families_and_ports() -> None:
    assert has_family(parse_address(":80")) and has_family(Address("unix", path="/a"))
    assert has_family(parse_address("[::1]:80")) == has_ipv6()
    assert may_bind(0) and may_bind(65535)
    assert may_bind(1) or os.geteuid() != 0


def test_names_are_looked_up_together_and_not_for_ever() -> None:
    silent, together = threading.Event(), threading.Barrier(3)

    def lookup(name: Address) -> tuple[Address, ...]:
        if name.host == "silent":
            silent.wait()
            return ()
        together.wait(60.0)
        if name.host == "unknown":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if name.host == "bad":
            raise UnicodeError("label too long")
        return (Address("inet", "10.0.0.1", name.port),)

    names = [parse_address(f"{host}:80") for host in ("known", "unknown", "bad", "known")]
    found = look_up_all(names, 120.0, lookup)
    assert [found[name] for name in names[:3]] == [
        (parse_address("10.0.0.1:80"),),
        "Name or service not known",
        "label too long",
    ]
    name = parse_address("silent:80")
    assert look_up_all([name], 0.01, lookup) == {name: "no answer within 0.01 s"}
    silent.set()


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert why_not_writable(f"{tmp_path}/file") == why_not_writable(f"{tmp_path}/new") == ""
    assert why_not_writable("/dev/null") == ""
    assert why_not_writable(str(tmp_path)) == f"{tmp_path} is a directory"
    absent, below = f"{tmp_path}/absent/new", f"{tmp_path}/file/new"
    assert why_not_writable(absent) == f"{absent} cannot be made: {tmp_path}/absent is missing"
    assert why_not_writable(below) == f"{below} cannot be made: {tmp_path}/file is no directory"


def test_sockets_and_directories(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert why_no_socket(f"{tmp_path}/file") == f"{tmp_path}/file is there and is no socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/a.sock")
        assert why_no_socket(f"{tmp_path}/a.sock") == why_no_socket(f"{tmp_path}/b.sock") == ""
    assert why_no_directory(str(tmp_path)) == why_no_directory(f"{tmp_path}/new") == ""
    assert why_no_directory(f"{tmp_path}/file") == f"{tmp_path}/file is no directory"
    assert why_no_directory(f"{tmp_path}/a/b") == f"{tmp_path}/a/b cannot be made: {tmp_path}/a is missing"


@pytest.mark.parametrize("why", [why_not_writable, why_no_socket, why_no_directory])
def test_a_read_only_file_system_is_named(why: object) -> None:
    """/sys is mounted read-only in most containers; where it is not, nothing is there to be tried."""
    assert callable(why)
    if not os.statvfs("/sys").f_flag & os.ST_RDONLY:
        pytest.skip("no file system is mounted read-only")
    assert why("/sys/new") == "/sys/new cannot be made: /sys is read-only"
