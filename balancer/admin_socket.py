"""The admin socket: where it lies unless told, how the daemon makes that place, how balancerctl finds and trusts it.

    root            /run/prefork-balancer/
    under systemd   the RuntimeDirectory= of that name
    anybody else    $XDG_RUNTIME_DIR/prefork-balancer/
    where the one above cannot be used: /tmp/prefork-balancer-UID/

RULES
- A directory of our own: mode 0700, of the user that starts the balancer, not reached through a symbolic link. In it
  no other user can put a socket in the place of ours.
- A socket is named after what is listened on: 9090.sock, 127.0.0.1:9090.sock; PID.pid.sock where the kernel chooses the
  port.
- Directory and pid are settled when the first master starts. They stay over reloads, upgrades and a change of user.
- Where the default place cannot be made the balancer serves without admin socket and says so. One that was asked for by
  its path is refused.
"""

import errno
import hashlib
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from balancer.config.machine import why_no_directory, why_no_socket
from balancer.config.units import LONGEST_UNIX_PATH, Address, parse_address
from balancer.config.words import quote, unquote

DIRECTORY = "prefork-balancer"
OF_ROOT = f"/run/{DIRECTORY}"
OFF = "off"
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED
_BY_PID = re.compile(r"(\d+)\.pid\.sock")


def parse_socket_path(text: str) -> str:
    """Off, or an absolute path short enough for a unix socket: a reload must find it wherever the master then stands."""
    path = unquote(text)
    if path in ("", OFF):
        return path
    try:
        path = os.path.abspath(path)
    except OSError:
        raise ValueError(f"{path} cannot be made: the working directory is missing") from None
    parse_address(f"unix:{quote(path)}")
    return path


def why_no_home(directory: str, uid: int) -> str:
    """Why admin sockets cannot lie in this directory, nothing when they can. It need not be there yet."""
    if len(os.path.join(directory, "65535.sock").encode()) > LONGEST_UNIX_PATH:
        return f"{directory} is too long for the path of a socket"
    try:
        info = os.lstat(directory)
    except FileNotFoundError:
        return why_no_directory(directory)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    if stat.S_ISLNK(info.st_mode):
        return f"{directory} is a symbolic link"
    if stat.S_ISDIR(info.st_mode) and info.st_uid != uid:
        return f"{directory} belongs to {user_name(info.st_uid)}"
    return why_no_directory(directory)


def make_home(directory: str, uid: int) -> str:
    """Make the directory, mode 0700, where it is missing; why admin sockets cannot lie there, nothing when they can."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        return why_no_home(directory, uid) or f"{directory} cannot be made: {error.strerror}"
    if why := why_no_home(directory, uid):
        return why
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_mode & 0o077:
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    return ""


def directories(environ: Mapping[str, str], uid: int) -> list[str]:
    """Where the admin sockets of this user's balancers may be, the first that can be used."""
    found = [OF_ROOT] if uid == 0 else []
    if uid != 0:
        managed = environ.get("RUNTIME_DIRECTORY", "").split(":")
        found += [path for path in managed if path.endswith(f"/{DIRECTORY}")]
        runtime = environ.get("XDG_RUNTIME_DIR", "")
        found += (
            [os.path.join(runtime, DIRECTORY)] if os.path.isabs(runtime) and os.path.isdir(runtime) else []
        )
    return [*found, f"/tmp/{DIRECTORY}-{uid}"]


def is_live(path: str) -> bool:
    """Whether a process accepts at the socket; EAGAIN says that its queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as conn:
        return conn.connect_ex(path) in (0, errno.EAGAIN)


def user_name(uid: int) -> str:
    """ "user web", "user 61184"."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


# -- the daemon's side


class AdminPlace:
    """Settles where the admin socket of one balancer lies, at each reading of its configuration.

    Of the directories `places` the first that can be used is taken. `inherited` are paths of sockets that a former master
    has left: its directory and pid stay, and its socket need not be made."""

    def __init__(self, places: Sequence[str], uid: int, pid: int, inherited: Iterable[str] = ()) -> None:
        self.directory = next((path for path in places if not why_no_home(path, uid)), places[0])
        self.uid = uid
        self.number = pid
        self._have = set(inherited)
        self._settled = OFF
        for path in self._have:
            directory, name = os.path.split(path)
            if os.path.basename(directory).startswith(DIRECTORY):
                match = _BY_PID.fullmatch(name)
                self.directory, self.number = directory, int(match[1]) if match else pid

    def path(self, listening: Address) -> str:
        """The default of a balancer whose first address is `listening`."""
        if listening.family == "unix":
            name = "unix" + re.sub(r"[^A-Za-z0-9.-]", "_", listening.path)
        elif not listening.port:
            name = f"{self.number}.pid"
        elif listening.host == "0.0.0.0":
            name = str(listening.port)
        else:
            name = str(listening)
        path = os.path.join(self.directory, f"{name}.sock")
        if len(path.encode()) <= LONGEST_UNIX_PATH:
            return path
        return os.path.join(self.directory, f"{hashlib.sha256(name.encode()).hexdigest()[:5]}.sock")

    def path_of(self, wanted: str, listening: Address, may_make: bool = False) -> tuple[str, tuple[str, ...]]:
        """As `settle`, when nobody is to look whether the socket can be made."""
        return wanted or self.path(listening), ()

    def settle(self, wanted: str, listening: Address, may_make: bool) -> tuple[str, tuple[str, ...]]:
        """The path of the socket or "off", and what there is to note; `wanted` is empty for the default.

        Raises ValueError when a socket that was asked for cannot be made. At a reload the default that cannot be made
        any more gives way to the one before. `may_make`: whether to make the directory."""
        path = wanted or self.path(listening)
        notes: tuple[str, ...] = ()
        if path not in (OFF, self._settled) and path not in self._have:
            if wanted:
                if why := why_no_socket(path):
                    raise ValueError(why)
            elif why := self._why_no_default(path, may_make):
                path = self._settled
                notes = (f"the admin socket is {path}: {why}; --admin PATH puts it elsewhere",)
        self._settled = path
        return path, notes

    def _why_no_default(self, path: str, may_make: bool) -> str:
        """Why the socket cannot be made in the directory of its own, nothing when it can. Another process that serves
        there, in another network namespace, matters to a start only: a check runs beside the balancer that it is for."""
        why = (make_home if may_make else why_no_home)(self.directory, self.uid)
        if not why and os.path.isdir(self.directory):
            why = why_no_socket(path)
        if not why and may_make and is_live(path):
            why = f"{path} is served by another process"
        return why


# -- balancerctl's side


class NoAdminSocket(Exception):
    """There is no balancer to ask; the text says why, in one sentence."""


def find_socket(
    port: int | None,
    environ: Mapping[str, str],
    places: Sequence[str],
    uid: int,
    is_live: Callable[[str], bool],
    listens_on: Callable[[str, int], bool],
) -> str:
    """The admin socket of the balancer on `port`, or of the only one that runs. Raises NoAdminSocket.

    `places` are directories to look in.
    `is_live(path)`: whether a process accepts there. `listens_on(path, port)`: whether that balancer has the port."""
    if port is None and (told := unquote(environ.get("BALANCER_ADMIN", "").strip())):
        if told == OFF:
            raise NoAdminSocket("BALANCER_ADMIN is off; name the admin socket with --admin PATH")
        return told
    if port is None and (text := environ.get("BALANCER_PORT", "").strip()).isdecimal():
        port = int(text)
    running = [path for path in _sockets(places, uid) if is_live(path)]
    found = running
    if port is not None:
        named = (f"{port}.sock", f":{port}.sock")
        found = [path for path in running if path.endswith((f"/{named[0]}", named[1]))]
        found = found or [path for path in running if listens_on(path, port)]
    if len(found) == 1:
        return found[0]
    where = "" if port is None else f" on port {port}"
    if found:
        choice = "-p PORT or --admin PATH" if port is None else "--admin PATH"
        raise NoAdminSocket(f"several balancers run{where}; choose with {choice}: {', '.join(found)}")
    others = f"; there is {', '.join(running)}" if running else ""
    raise NoAdminSocket(
        f"no balancer{where} has an admin socket in {' or '.join(places)}{others}; name another with --admin PATH"
    )


def _sockets(places: Iterable[str], uid: int) -> Iterator[str]:
    """The socket files in those directories that may be trusted. /run is root's, so root trusts what is made there."""
    for directory in dict.fromkeys(places):
        try:
            info = os.lstat(directory)
            is_ours = stat.S_ISDIR(info.st_mode) and (info.st_uid == uid or directory == OF_ROOT)
            names = sorted(os.listdir(directory)) if is_ours and not info.st_mode & 0o022 else []
        except OSError:
            continue
        yield from (os.path.join(directory, name) for name in names if name.endswith(".sock"))


def why_not_trusted(conn: socket.socket, path: str, uid: int) -> str:
    """Why nothing is to be sent to the process at the other end, nothing when it is to be trusted: it is root's or this
    user's, or nobody but these can put a socket into the directory. Root trusts the owner of the directory as well."""
    raw = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, peer, _ = _CREDENTIALS.unpack(raw)
    if peer in (0, uid):
        return ""
    try:
        info = os.stat(os.path.dirname(path) or os.curdir)
        trusted = (0, peer) if uid == 0 else (0, uid)
        if info.st_uid in trusted and not info.st_mode & 0o022:
            return ""
    except OSError:
        pass
    return f"the admin socket {path} is served by {user_name(peer)}, which is neither root nor this user"
