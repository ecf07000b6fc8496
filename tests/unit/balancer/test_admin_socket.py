"""Where the admin socket lies: its directory, its name, what happens where it cannot be made, how it is found."""

import os
import socket
from pathlib import Path

import pytest

from balancer.admin_socket import (
    OF_ROOT,
    AdminPlace,
    NoAdminSocket,
    directories,
    find_socket,
    make_home,
    why_no_home,
    why_not_trusted,
)
from balancer.config.units import Address, parse_address

UID = os.geteuid()
USER = 1000
WEB = parse_address("0.0.0.0:9090")


# -- the directory


def test_the_directories_of_root_and_of_others(tmp_path: Path) -> None:
    own = f"/tmp/prefork-balancer-{USER}"
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert directories(runtime, 0) == [OF_ROOT, "/tmp/prefork-balancer-0"]
    assert directories(runtime, USER) == [f"{tmp_path}/prefork-balancer", own]
    assert directories({}, USER) == directories({"XDG_RUNTIME_DIR": "/absent"}, USER) == [own]
    managed = {"RUNTIME_DIRECTORY": "/run/other:/run/prefork-balancer"}
    assert directories({**runtime, **managed}, USER)[0] == "/run/prefork-balancer"


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "prefork-balancer"
    assert why_no_home(str(home), UID) == make_home(str(home), UID) == ""
    assert home.stat().st_mode & 0o777 == 0o700
    home.chmod(0o755)
    assert make_home(str(home), UID) == ""
    assert home.stat().st_mode & 0o777 == 0o700


def test_what_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    long = f"{tmp_path}/{'x' * 100}"
    for path, uid, why in (
        (tmp_path / "link", UID, "is a symbolic link"),
        (tmp_path / "dangling", UID, "is a symbolic link"),
        (tmp_path / "real", UID + 1, "belongs to user "),
        (tmp_path / "file", UID, "is no directory"),
        (tmp_path / "absent" / "home", UID, f"cannot be made: {tmp_path}/absent is missing"),
        (Path(long), UID, "is too long for the path of a socket"),
        (Path("/proc/prefork-balancer"), UID, "/proc/prefork-balancer cannot be made"),
    ):
        assert why in make_home(str(path), uid), path
    assert not (tmp_path / "nothing").exists()


def test_the_next_directory_is_taken_where_the_first_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = [f"{tmp_path}/file", f"{tmp_path}/absent/home", f"{tmp_path}/home", "/other"]
    assert AdminPlace(places, UID, 1).directory == places[2]
    assert AdminPlace(places[:2], UID, 1).directory == places[0]


# -- the socket


def test_a_name_that_is_too_long_is_shortened(tmp_path: Path) -> None:
    place = AdminPlace([str(tmp_path)], UID, 1)
    paths = {place.path(Address("unix", path=f"/{'x' * 100}{end}")) for end in "ab"}
    assert len(paths) == 2
    assert all(len(path) <= 107 and path.startswith(place.directory) for path in paths)


def test_the_default_is_made_and_stays_when_it_cannot_be_made_any_more(tmp_path: Path) -> None:
    place = AdminPlace([f"{tmp_path}/home"], UID, 1)
    path = f"{tmp_path}/home/9090.sock"
    assert place.settle("", WEB, may_make=True) == (path, ())
    place.uid = UID + 1  # the master has become another user
    assert place.settle("", WEB, may_make=True) == (path, ())
    settled, notes = place.settle("", parse_address("0.0.0.0:80"), may_make=True)
    assert settled == path
    assert notes[0].startswith(f"the admin socket is {path}: {tmp_path}/home belongs to")


def test_a_default_that_cannot_be_made_is_off_and_noted(tmp_path: Path) -> None:
    place = AdminPlace([f"{tmp_path}/absent/home"], UID, 1)
    [note] = place.settle("", WEB, may_make=True)[1]
    assert place.settle("", WEB, may_make=True)[0] == "off"
    assert note == (
        f"the admin socket is off: {tmp_path}/absent/home cannot be made: {tmp_path}/absent is missing; "
        "--admin PATH puts it elsewhere"
    )
    (tmp_path / "absent").mkdir()
    assert place.settle("", WEB, may_make=True) == (f"{tmp_path}/absent/home/9090.sock", ())


def test_a_default_that_something_else_stands_in_the_way_of_is_off(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    path = home / "9090.sock"
    place = AdminPlace([str(home)], UID, 1)
    path.mkdir()
    for may_make in (True, False):
        settled, [note] = place.settle("", WEB, may_make)
        assert settled == "off" and f"{path} is there and is no socket" in note
    path.rmdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert place.settle("", WEB, may_make=True) == (str(path), ())  # a file that was left behind
        listener.listen()
        # A check: that may be the balancer which is asked about.
        assert AdminPlace([str(home)], UID, 2).settle("", WEB, may_make=False) == (str(path), ())
        settled, [note] = AdminPlace([str(home)], UID, 2).settle("", WEB, may_make=True)
        assert settled == "off" and f"{path} is served by another process" in note


def test_one_that_was_asked_for_is_refused_where_it_cannot_be_made(tmp_path: Path) -> None:
    place = AdminPlace(["/a"], UID, 1)
    path = f"{tmp_path}/absent/a.sock"
    with pytest.raises(ValueError, match=r"a\.sock cannot be made: .*absent is missing"):
        place.settle(path, WEB, may_make=True)
    assert place.settle("off", WEB, may_make=True) == ("off", ())
    assert AdminPlace(["/a"], UID, 1, [path]).settle(path, WEB, may_make=True) == (path, ())


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    place = AdminPlace([f"{tmp_path}/home"], UID, 1)
    assert place.settle("", WEB, may_make=False) == (f"{tmp_path}/home/9090.sock", ())
    assert not (tmp_path / "home").exists()


def test_an_upgrade_keeps_the_place() -> None:
    """The old master was root and has become another user, for whom the directory would be another."""
    inherited = ["/run/metrics.sock", "/run/prefork-balancer/4711.pid.sock"]
    place = AdminPlace(["/tmp/prefork-balancer-1000"], USER, 5000, inherited)
    assert place.settle("", parse_address(":0"), may_make=True) == (inherited[1], ())


# -- balancerctl


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "prefork-balancer"
    path.mkdir(mode=0o700)
    return path


def find(
    port: int | None, home: Path, environ: dict[str, str] | None = None, dead: str = "-", listening: str = "-"
) -> str:
    """The name of the socket that is found in `home`; `dead` has no process, `listening` has every port."""
    path = find_socket(
        port,
        environ or {},
        ["/absent", str(home)],
        UID,
        is_live=lambda path: not path.endswith(dead),
        listens_on=lambda path, port: path.endswith(listening),
    )
    return os.path.basename(path)


def make(home: Path, *names: str) -> None:
    for name in names:
        (home / name).touch()


def test_the_only_balancer_is_found_without_a_port_and_each_by_its_port(home: Path) -> None:
    make(home, "9090.sock", "README")
    assert find(None, home) == "9090.sock"
    make(home, "10.0.0.1:80.sock", "5.pid.sock")
    assert find(9090, home) == "9090.sock"
    assert find(80, home) == "10.0.0.1:80.sock"
    assert find(443, home, listening="5.pid.sock") == "5.pid.sock"
    assert find(None, home, {"BALANCER_PORT": "80"}) == "10.0.0.1:80.sock"
    with pytest.raises(NoAdminSocket, match="several balancers run; choose with -p PORT or --admin PATH: /"):
        find(None, home)
    with pytest.raises(NoAdminSocket, match=r"no balancer on port 0 has .*; there is /.*with --admin PATH"):
        find(0, home)


def test_the_socket_of_a_balancer_that_was_killed_is_passed_over(home: Path) -> None:
    make(home, "9090.sock", "80.sock")
    assert find(None, home, dead="/80.sock") == "9090.sock"
    with pytest.raises(NoAdminSocket, match="no balancer on port 80 has"):
        find(80, home, dead="/80.sock")


def test_two_addresses_with_one_port_are_a_choice(home: Path) -> None:
    make(home, "10.0.0.1:80.sock", "[::1]:80.sock")
    with pytest.raises(NoAdminSocket, match="several balancers run on port 80; choose with --admin PATH"):
        find(80, home)


def test_a_directory_that_others_may_write_to_is_not_looked_into(home: Path) -> None:
    make(home, "9090.sock")
    home.chmod(0o777)
    with pytest.raises(NoAdminSocket, match="no balancer has an admin socket in /absent or /"):
        find(None, home)


def test_what_the_environment_says_comes_first(home: Path) -> None:
    make(home, "9090.sock")
    assert find(None, home, {"BALANCER_ADMIN": "/a.sock"}) == "a.sock"
    assert find(None, home, {"BALANCER_ADMIN": ' "/my app/a.sock" '}) == "a.sock"
    assert find(9090, home, {"BALANCER_ADMIN": "/a.sock"}) == "9090.sock"
    with pytest.raises(NoAdminSocket, match="BALANCER_ADMIN is off; name the admin socket with --admin PATH"):
        find(None, home, {"BALANCER_ADMIN": "off"})


@pytest.mark.parametrize(
    ("asker", "mode", "is_trusted"),
    [
        (UID, 0o777, True),  # the listening process is the asker's
        (UID + 1, 0o700, UID == 0),  # a directory of root's: nobody else has put it there
        (UID + 1, 0o777, UID == 0),  # root's process
    ],
)
def test_only_a_trusted_process_is_asked(tmp_path: Path, asker: int, mode: int, is_trusted: bool) -> None:
    tmp_path.chmod(mode)
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as conn:
        listener.bind(path)
        listener.listen()
        conn.connect(path)
        assert (why_not_trusted(conn, path, asker) == "") == is_trusted


class PeerOf:
    """A connection to a process of another user."""

    def __init__(self, uid: int) -> None:
        self.uid = uid

    def getsockopt(self, *asked: int) -> bytes:
        return b"".join(number.to_bytes(4, "little") for number in (1, self.uid, 1))


def test_a_stranger_is_not_asked(tmp_path: Path) -> None:
    conn: object = PeerOf(4242)
    tmp_path.chmod(0o777)
    why = why_not_trusted(conn, str(tmp_path / "a.sock"), UID)  # type: ignore[arg-type]
    assert why.endswith("is served by user 4242, which is neither root nor this user")
    tmp_path.chmod(0o700)
    assert why_not_trusted(conn, str(tmp_path / "a.sock"), UID) == ""  # type: ignore[arg-type]
