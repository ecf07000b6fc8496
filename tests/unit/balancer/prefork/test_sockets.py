"""Sockets of slots: groups, names, ports chosen by the kernel, second instances, socket files, inherited sockets."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from balancer.config.units import Address, parse_address
from balancer.prefork.bind import Bind, CannotBind
from balancer.prefork.boot import retry_bind
from balancer.prefork.inherited import Inherited, InheritedSocket, hand_out, listens_at
from balancer.prefork.sockets import PlanSockets, SocketGroup, Sockets, match_groups
from scripts.lab.network import free_port


def closing(sockets: Sockets) -> None:
    sockets.unlink()
    for group in (*sockets.groups, *sockets.leftover):
        group.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def sockets(stack: ExitStack) -> Sockets:
    made = Sockets()
    stack.callback(closing, made)
    return made


def tcp(port: int = 0, role: str = "worker", per_slot: bool = True, name: str = "") -> Bind:
    return Bind(role, parse_address(f"127.0.0.1:{port}"), per_slot=per_slot, name=name)


def only(opened: PlanSockets) -> SocketGroup:
    (group,) = opened.added
    return group


def test_port_zero_becomes_one_port_for_all_slots(sockets: Sockets) -> None:
    opened = sockets.open([tcp()], 3)
    group = only(opened)
    ports = {sock.getsockname()[1] for sock in group.sockets}
    assert len(ports) == 1 and ports == {group.address.port} != {0}
    by_slot = opened.by_slot("worker")
    assert list(by_slot) == [0, 1, 2] and opened.slots("worker") == 3
    assert [[one.slot for one in many] for many in by_slot.values()] == [[0], [1], [2]]


def test_real_addresses_are_in_the_order_of_the_plan(sockets: Sockets) -> None:
    binds = [tcp(name="web"), tcp(name="web"), tcp(name="api"), tcp(role="console", per_slot=False)]
    opened = sockets.open(binds, 2)
    ports = [group.address for _, group in opened.pairs]
    assert opened.addresses() == {"web": tuple(ports[:2]), "api": (ports[2],), "": (ports[3],)}
    assert len({address.port for address in ports}) == 4 and all(address.port for address in ports)


def test_opening_again_changes_nothing(sockets: Sockets) -> None:
    first = sockets.open([tcp()], 2)
    second = sockets.open([tcp()], 2)
    assert second.added == () and second.pairs == first.pairs


def test_growing_keeps_what_is_there_and_adds_at_the_end(sockets: Sockets) -> None:
    opened = sockets.open([tcp(), tcp(role="console", per_slot=False)], 2)
    before = opened.by_slot("worker")
    sockets.grow(4)
    after = opened.by_slot("worker")
    assert list(after) == [0, 1, 2, 3] and {slot: after[slot] for slot in before} == before
    assert list(opened.by_slot("console")) == [0]


def test_a_second_instance_cannot_join_the_group(sockets: Sockets) -> None:
    port = only(sockets.open([tcp()], 2)).address.port
    other = Sockets()
    with pytest.raises(CannotBind, match=f"cannot bind 127.0.0.1:{port}: Address already in use"):
        other.open([tcp(port)], 2)
    assert other.groups == []


def test_all_or_nothing(sockets: Sockets, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = tmp_path / "s"
        binds = [tcp(), Bind("worker", parse_address(f"unix:{file}")), tcp(taken.getsockname()[1])]
        with pytest.raises(CannotBind, match=str(taken.getsockname()[1])):
            sockets.open(binds, 2)
    assert sockets.groups == [] and not file.exists()


def test_a_removed_port_stops_listening_even_where_a_duplicate_is_held(sockets: Sockets) -> None:
    group = only(sockets.open([tcp()], 2))
    duplicates = [sock.dup() for sock in group.sockets]
    sockets.remove(list(sockets.groups))
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", group.address.port)) == errno.ECONNREFUSED
    for sock in duplicates:
        sock.close()


def test_a_unix_socket_is_one_queue_with_a_descriptor_per_slot(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "lb.sock"
    group = only(sockets.open([Bind("worker", parse_address(f"unix:{path}"), mode=0o660)], 2))
    assert group.is_shared and len({sock.fileno() for sock in group.sockets}) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        group.sockets[1].accept()[0].close()
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


def test_the_socket_file_of_another_process_is_left_alone(sockets: Sockets, tmp_path: Path) -> None:
    path = tmp_path / "s"
    sockets.open([Bind("console", parse_address(f"unix:{path}"), per_slot=False)], 1)
    path.unlink()
    path.write_text("")
    sockets.unlink()
    assert path.exists()


def test_options_are_set_on_every_socket(sockets: Sockets) -> None:
    nodelay = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    group = only(sockets.open([replace(tcp(), options=(nodelay,))], 2))
    for sock in group.sockets:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_inheritable(sock.fileno())


# --- names: which socket belongs to which listener


def names_by_port(opened: PlanSockets) -> dict[int, str]:
    return {one.address.port: one.name for one in opened.by_slot("worker")[0]}


def test_a_renamed_listener_keeps_its_sockets_and_each_plan_sees_its_own_name(sockets: Sockets) -> None:
    """Fails where the name is part of the identity: the address would be bound again, beside its own queue."""
    old = sockets.open([tcp(name="web")], 2)
    (port,) = names_by_port(old)
    new = sockets.open([tcp(name="www")], 2)
    assert new.added == () and len(sockets.groups) == 1
    assert (names_by_port(old), names_by_port(new)) == ({port: "web"}, {port: "www"})


def test_port_zero_of_two_listeners_is_two_addresses(sockets: Sockets) -> None:
    """Fails where (role, address) alone is the identity: the second group would replace the first one in the registry."""
    opened = sockets.open([tcp(name="a"), tcp(name="b"), tcp(name="b")], 2)
    assert len(sockets.groups) == 3
    assert sorted(names_by_port(opened).values()) == ["a", "b", "b"]


def test_port_zero_of_a_listener_that_stays_is_its_own(sockets: Sockets) -> None:
    """The first listener goes, the second one's sockets must not become a third one's. Fails where the order decides."""
    old = sockets.open([tcp(name="a"), tcp(name="b")], 1)
    new = sockets.open([tcp(name="b"), tcp(name="c")], 1)
    assert new.added == ()
    ports = {name: port for port, name in names_by_port(old).items()}
    assert names_by_port(new) == {ports["a"]: "c", ports["b"]: "b"}


@pytest.mark.parametrize(("before", "after"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")])
def test_an_address_may_be_narrowed_and_widened(sockets: Sockets, before: str, after: str) -> None:
    """The new one is bound while the old one still listens. Fails where it is bound as if no part of it were ours."""
    port = (
        free_port()
    )  # one that the kernel chose may be taken by a client at another address of this machine
    only(sockets.open([Bind("worker", Address("inet", before, port))], 2))
    new = only(sockets.open([Bind("worker", Address("inet", after, port))], 2))
    sockets.remove([group for group in sockets.groups if group is not new])
    with socket.create_connection(("127.0.0.1", port), 1):
        assert len(new.sockets) == 2
    other = Sockets()
    with pytest.raises(CannotBind):
        other.open([Bind("worker", Address("inet", after, port))], 1)


def test_an_address_serves_one_role_only() -> None:
    group = SocketGroup(tcp(80))
    assert match_groups([tcp(80, role="console"), tcp(81), tcp(80)], [group]) == [None, None, group]


# --- inherited sockets


def listening(stack: ExitStack, address: tuple[str, int] = ("127.0.0.1", 0)) -> socket.socket:
    sock = stack.enter_context(socket.socket())
    sock.bind(address)
    sock.listen()
    return sock


def given(sock: socket.socket, name: str = "") -> Inherited:
    """As a service manager hands it in."""
    return InheritedSocket(sock.fileno(), name=name, is_external=True), sock


def successor(sockets: Sockets, stack: ExitStack) -> Sockets:
    """What a new master begins with."""
    made = Sockets()
    made.inherited = [(item, socket.socket(fileno=os.dup(item.fd))) for item in sockets.to_hand_over()]
    stack.callback(closing, made)
    return made


def test_one_inherited_socket_is_shared_by_all_slots(sockets: Sockets, stack: ExitStack) -> None:
    sock = listening(stack)
    sockets.inherited = [given(sock)]
    group = only(sockets.open([tcp(sock.getsockname()[1])], 3))
    assert group.is_shared and len(group.sockets) == 3 and sockets.inherited == []


def test_a_successor_recognises_port_zero(sockets: Sockets, stack: ExitStack) -> None:
    old = sockets.open([tcp(name="a"), tcp(name="b")], 2)
    heir = successor(sockets, stack)
    new = heir.open([tcp(name="b"), tcp(name="a")], 3)
    assert names_by_port(new) == names_by_port(old)
    assert all(len(group.sockets) == 3 and not group.is_shared for group in heir.groups)


def test_a_successor_recognises_a_renamed_listener(sockets: Sockets, stack: ExitStack) -> None:
    old = sockets.open([tcp(name="a"), tcp(name="b")], 1)
    new = successor(sockets, stack).open([tcp(name="c"), tcp(name="b")], 1)
    ports = {name: port for port, name in names_by_port(old).items()}
    assert names_by_port(new) == {ports["a"]: "c", ports["b"]: "b"}


def test_a_name_of_the_service_manager_decides(stack: ExitStack) -> None:
    """Two sockets, each at an address that the configuration has otherwise. Fails where the address alone counts."""
    web, mail = listening(stack), listening(stack, ("127.0.0.2", 0))
    binds = [replace(tcp(1, name="mail")), tcp(2, name="web")]
    assert hand_out(binds, [given(web, "web"), given(mail, "mail")]) == [
        [given(mail, "mail")],
        [given(web, "web")],
    ]


def test_each_address_of_a_named_listener_takes_its_own_socket(stack: ExitStack) -> None:
    first, second = listening(stack), listening(stack)
    binds = [tcp(sock.getsockname()[1], name="web") for sock in (second, first)]
    assert hand_out(binds, [given(first, "web"), given(second, "web")]) == [
        [given(second, "web")],
        [given(first, "web")],
    ]


def test_a_name_that_no_listener_has_leaves_it_to_the_address(stack: ExitStack) -> None:
    sock = listening(stack)
    binds = [tcp(port, name="web") for port in (1, sock.getsockname()[1])]
    handed = [given(sock, "balancer.socket")]
    assert hand_out(binds, handed) == [[], handed]
    assert hand_out(binds[:1], handed) == [[]]


def test_the_address_of_a_named_socket_is_the_one_it_has(sockets: Sockets, stack: ExitStack) -> None:
    sock = listening(stack, ("127.0.0.2", 0))
    sockets.inherited = [(given(sock, "web")[0], sock.dup())]
    opened = sockets.open([tcp(1, name="web")], 2)
    host, port = sock.getsockname()
    assert [str(many[0].address) for many in opened.by_slot("worker").values()] == [f"{host}:{port}"] * 2


def test_what_a_service_manager_made_is_not_shut(sockets: Sockets, stack: ExitStack, tmp_path: Path) -> None:
    """Also after an upgrade. Fails where a removed address is shut down wherever it came from: the manager could not
    start us again on it."""
    file = tmp_path / "s"
    unix = stack.enter_context(socket.socket(socket.AF_UNIX))
    unix.bind(str(file))
    unix.listen()
    tcp_socket = listening(stack)
    sockets.inherited = [(item, sock.dup()) for item, sock in (given(tcp_socket), given(unix))]
    address = Address("unix", path=str(file))
    sockets.open([tcp(tcp_socket.getsockname()[1]), Bind("worker", address)], 2)
    heir = successor(sockets, stack)
    heir.open([], 2)
    assert heir.sort_out() == [] and len(heir.leftover) == 2
    heir.remove(list(heir.leftover))
    sockets.remove(list(sockets.groups))
    with socket.create_connection(tcp_socket.getsockname(), 1), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(file))


def test_what_a_successor_does_not_configure_is_left_over_and_shut_later(
    sockets: Sockets, stack: ExitStack
) -> None:
    old = sockets.open([tcp(name="a"), tcp(name="b")], 2)
    ports = {name: port for port, name in names_by_port(old).items()}
    heir = successor(sockets, stack)
    heir.open([tcp(name="b")], 2)
    assert heir.sort_out() == [] and [len(group.sockets) for group in heir.leftover] == [2]
    assert heir.slots() == 2
    with socket.create_connection(("127.0.0.1", ports["a"]), 1):
        pass
    heir.remove(list(heir.leftover))
    assert heir.leftover == []
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", ports["a"])) == errno.ECONNREFUSED


def test_wildcards_of_one_port_are_one_address() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", 0))
        port = sock.getsockname()[1]
        assert listens_at(sock, parse_address(f"0.0.0.0:{port}"))
        assert not listens_at(sock, parse_address(f"127.0.0.1:{port}"))
        assert not listens_at(sock, parse_address(f"0.0.0.0:{port + 1 if port < 65535 else 1}"))
        assert not listens_at(sock, parse_address("unix:/x"))


def test_a_successor_may_narrow_an_address(sockets: Sockets, stack: ExitStack) -> None:
    port = only(sockets.open([Bind("worker", Address("inet", "0.0.0.0", 0))], 2)).address.port
    heir = successor(sockets, stack)
    group = only(heir.open([tcp(port)], 2))
    with socket.create_connection(("127.0.0.1", port), 1):
        group.sockets[0].setblocking(True)
    assert heir.sort_out() == [] and len(heir.leftover) == 1


def test_slots_of_a_former_master_stay_slots_however_few_are_wanted(
    sockets: Sockets, stack: ExitStack
) -> None:
    """The kernel gives clients to each socket of the group: in one without a slot they would stay for ever."""
    sockets.open([tcp(), tcp(role="console", per_slot=False)], 4)
    heir = successor(sockets, stack)
    binds = [tcp(), Bind("worker", parse_address("127.0.0.2:0")), tcp(role="console", per_slot=False)]
    opened = heir.open(binds, 2)
    assert heir.slots() == 4
    assert [len(group.sockets) for group in opened.added] == [4, 4, 1]


def test_what_was_inherited_survives_a_failed_attempt(
    sockets: Sockets, stack: ExitStack, tmp_path: Path
) -> None:
    """The next attempt needs it, and the file is still the former master's."""
    file = tmp_path / "s"
    binds = [tcp(), Bind("worker", parse_address(f"unix:{file}"))]
    sockets.open(binds, 2)
    heir = successor(sockets, stack)
    inherited = [sock for _, sock in heir.inherited]
    taken = listening(stack).getsockname()[1]
    with pytest.raises(CannotBind, match=str(taken)):
        heir.open([*binds, tcp(taken)], 3)
    assert [sock for _, sock in heir.inherited] == inherited and heir.groups == []
    assert file.exists() and all(sock.fileno() >= 0 for sock in inherited)
    assert len(heir.open(binds, 2).added) == 2


# --- at boot


def test_a_dying_instance_is_waited_for_and_other_errors_are_not() -> None:
    naps: list[float] = []

    def fail(code: int) -> PlanSockets:
        try:
            raise OSError(code, os.strerror(code))
        except OSError as error:
            raise CannotBind("cannot bind x") from error

    def act() -> PlanSockets:
        return PlanSockets() if len(naps) == 3 else fail(errno.EADDRINUSE)

    assert retry_bind(act, naps.append) == PlanSockets()
    assert len(naps) == 3
    with pytest.raises(CannotBind):
        retry_bind(lambda: fail(errno.EACCES), naps.append)
    assert len(naps) == 3
    with pytest.raises(CannotBind):
        retry_bind(lambda: fail(errno.EADDRINUSE), naps.append, tries=4)
    assert len(naps) == 6
