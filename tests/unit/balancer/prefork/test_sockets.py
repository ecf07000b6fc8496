"""Sockets of slots: groups, ports chosen by the kernel, second instances, socket files, inherited sockets."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.config.units import parse_address
from balancer.prefork.boot import retry_bind
from balancer.prefork.sockets import Bind, CannotBind, Sockets, serves
from balancer.prefork.upgrade import InheritedSocket


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.unlink()
    for group in made.groups.values():
        group.close()


def tcp(port: int = 0, role: str = "worker", per_slot: bool = True) -> Bind:
    return Bind(role, parse_address(f"127.0.0.1:{port}"), per_slot=per_slot)


def port_of(sockets: Sockets, role: str = "worker") -> int:
    return sockets.of_role(role)[0][0].address.port


def test_port_zero_becomes_one_port_for_all_slots(sockets: Sockets) -> None:
    (group,) = sockets.open([tcp()], 3)
    ports = {listener.sock.getsockname()[1] for listener in group.sockets}
    assert len(ports) == 1 and ports == {group.address.port} != {0}
    assert [listener.slot for listener in group.sockets] == [0, 1, 2]
    assert list(sockets.of_role("worker")) == [0, 1, 2]


def test_opening_again_changes_nothing(sockets: Sockets) -> None:
    sockets.open([tcp()], 2)
    before = sockets.of_role("worker")
    assert sockets.open([tcp()], 2) == []
    assert sockets.of_role("worker") == before


def test_growing_keeps_what_is_there_and_adds_at_the_end(sockets: Sockets) -> None:
    sockets.open([tcp(), tcp(role="console", per_slot=False)], 2)
    before = sockets.of_role("worker")
    sockets.grow(4)
    after = sockets.of_role("worker")
    assert list(after) == [0, 1, 2, 3] and {slot: after[slot] for slot in before} == before
    assert list(sockets.of_role("console")) == [0]


def test_a_second_instance_cannot_join_the_group(sockets: Sockets) -> None:
    sockets.open([tcp()], 2)
    other = Sockets()
    with pytest.raises(CannotBind, match=f"cannot bind 127.0.0.1:{port_of(sockets)}: Address already in use"):
        other.open([tcp(port_of(sockets))], 2)
    assert other.groups == {}


def test_all_or_nothing(sockets: Sockets, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = tmp_path / "s"
        binds = [tcp(), Bind("worker", parse_address(f"unix:{file}")), tcp(taken.getsockname()[1])]
        with pytest.raises(CannotBind, match=str(taken.getsockname()[1])):
            sockets.open(binds, 2)
    assert sockets.groups == {} and not file.exists()


def test_a_removed_port_stops_listening_even_where_a_duplicate_is_held(sockets: Sockets) -> None:
    sockets.open([tcp()], 2)
    port = port_of(sockets)
    duplicates = [listener.sock.dup() for many in sockets.of_role("worker").values() for listener in many]
    sockets.remove(list(sockets.groups))
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    for sock in duplicates:
        sock.close()


def test_a_unix_socket_is_one_queue_with_a_descriptor_per_slot(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "lb.sock"
    (group,) = sockets.open([Bind("worker", parse_address(f"unix:{path}"), mode=0o660)], 2)
    assert group.shared and len({listener.fd for listener in group.sockets}) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        group.sockets[1].sock.accept()[0].close()
    sockets.unlink()
    assert not path.exists()


def test_a_stale_socket_file_is_replaced_a_live_one_is_not(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bind = Bind("console", parse_address(f"unix:{path}"), per_slot=False)
    sockets.open([bind], 1)
    with pytest.raises(CannotBind):
        Sockets().open([bind], 1)
    assert path.exists()


def test_what_is_not_a_socket_is_never_unlinked(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(CannotBind):
        sockets.open([Bind("console", parse_address(f"unix:{path}"), per_slot=False)], 1)
    assert path.read_text() == "x"


def test_another_ones_socket_file_is_left_alone(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "s"
    sockets.open([Bind("console", parse_address(f"unix:{path}"), per_slot=False)], 1)
    path.unlink()
    path.write_text("")
    sockets.unlink()
    assert path.exists()


def test_options_are_set_on_every_listener(sockets: Sockets) -> None:
    bind = Bind(
        "worker", parse_address("127.0.0.1:0"), options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
    )
    (group,) = sockets.open([bind], 2)
    for listener in group.sockets:
        assert listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_inheritable(listener.fd)


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def test_one_inherited_socket_is_shared_by_all_slots(sockets: Sockets) -> None:
    given = listening()
    sockets.inherited = [(InheritedSocket(given.fileno()), given)]
    (group,) = sockets.open([tcp(given.getsockname()[1])], 3)
    assert group.shared and len(group.sockets) == 3 and sockets.inherited == []


def test_a_successor_recognises_port_zero(sockets: Sockets) -> None:
    sockets.open([tcp()], 2)
    heir = Sockets()
    heir.inherited = [(item, socket.socket(fileno=os.dup(item.fd))) for item in sockets.to_hand_over()]
    (group,) = heir.open([tcp()], 3)
    assert group.address.port == port_of(sockets) and len(group.sockets) == 3 and not group.shared
    heir.groups[group.key].close()


def test_wildcards_of_one_port_are_one_address() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", 0))
        port = sock.getsockname()[1]
        assert serves(sock, parse_address(f"0.0.0.0:{port}"))
        assert not serves(sock, parse_address(f"127.0.0.1:{port}"))
        assert not serves(sock, parse_address(f"0.0.0.0:{port + 1 if port < 65535 else 1}"))
        assert not serves(sock, parse_address("unix:/x"))


def test_a_dying_instance_is_waited_for_and_other_errors_are_not() -> None:
    naps: list[float] = []

    def fail(code: int) -> None:
        try:
            raise OSError(code, os.strerror(code))
        except OSError as error:
            raise CannotBind("cannot bind x") from error

    def act() -> list[object]:
        if len(naps) < 3:
            fail(errno.EADDRINUSE)
        return []

    assert retry_bind(act, naps.append) == []  # type: ignore[arg-type]
    assert len(naps) == 3
    with pytest.raises(CannotBind):
        retry_bind(lambda: fail(errno.EACCES), naps.append)  # type: ignore[arg-type,return-value,func-returns-value]
    assert len(naps) == 3
    with pytest.raises(CannotBind):
        retry_bind(lambda: fail(errno.EADDRINUSE), naps.append, tries=4)  # type: ignore[arg-type,return-value,func-returns-value]
    assert len(naps) == 6


def handed_over(sockets: Sockets) -> list[tuple[InheritedSocket, socket.socket]]:
    return [(item, socket.socket(fileno=os.dup(item.fd))) for item in sockets.to_hand_over()]


def test_slots_of_a_former_master_stay_slots_however_few_are_wanted(sockets: Sockets) -> None:
    """Each socket of the group is given clients by the kernel: one without a slot would keep them for ever."""
    sockets.open([tcp(), tcp(role="console", per_slot=False)], 4)
    heir = Sockets()
    heir.inherited = handed_over(sockets)
    groups = heir.open(
        [tcp(), Bind("worker", parse_address("127.0.0.2:0")), tcp(role="console", per_slot=False)], 2
    )
    assert heir.slots() == 4
    assert [len(group.sockets) for group in groups] == [4, 4, 1]
    for group in groups:
        group.close()


def test_what_was_handed_in_survives_a_failed_attempt(sockets: Sockets, tmp_path: Path) -> None:
    """The next attempt needs it, and the file is still the former master's."""
    file = tmp_path / "s"
    binds = [tcp(), Bind("worker", parse_address(f"unix:{file}"))]
    sockets.open(binds, 2)
    heir = Sockets()
    heir.inherited = handed_over(sockets)
    given = [sock for _, sock in heir.inherited]
    with listening() as taken, pytest.raises(CannotBind, match=str(taken.getsockname()[1])):
        heir.open([*binds, tcp(taken.getsockname()[1])], 3)
    assert [sock for _, sock in heir.inherited] == given and heir.groups == {}
    assert file.exists() and all(sock.fileno() >= 0 for sock in given)
    for group in heir.open(binds, 2):
        group.close()
