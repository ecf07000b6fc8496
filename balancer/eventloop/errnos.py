"""Classes of errno values: what an OSError says about the next step. The one table; no other module lists errnos.

RULES: constants only. A class answers one question, so classes overlap. An error in none of the classes that a caller
asks about goes to that caller's one closer.
"""

import errno

# read, write: the descriptor is not ready. Wait for its next event.
WOULD_BLOCK = frozenset({errno.EAGAIN, errno.EINTR})

# read, write: nothing is wrong with the connection. Without EAGAIN no event follows (the kernel is short of memory), so
# the caller has to try again by itself.
TRANSIENT = WOULD_BLOCK | {errno.ENOBUFS, errno.ENOMEM}

# accept, socket, connect, pidfd_open: this process or this machine is out of descriptors, memory or ports. Says nothing
# about the peer; asking again at once does not help.
CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

# connect: no place at the moment. The accept queue of a unix socket is full (TCP waits instead), or no local port is free
# towards this destination. The backend has not failed; another one may have a place.
CROWDED = frozenset({errno.EAGAIN, errno.EADDRNOTAVAIL})

# accept: this one connection died in the queue, or its network or a firewall rule failed it (accept(2) reports both as
# its own error). The next connection may be fine.
STILLBORN = frozenset(
    {errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM, errno.ETIMEDOUT, errno.ENOPROTOOPT}
    | {errno.EOPNOTSUPP, errno.ENETDOWN, errno.ENETUNREACH, errno.ENONET, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)

# connect: no process listens at the address; for a unix socket also: there is no such file.
NOT_LISTENING = frozenset({errno.ECONNREFUSED, errno.ENOENT})

# connect: the backend's machine answered, and the answer is no.
# write(2) to a datagram socket: the other end is gone, and may have been bound again
PEER_IS_GONE = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET})

REFUSED = NOT_LISTENING | {errno.ECONNRESET}

# connect: no way to the backend's machine, or a rule on the way forbids it.
UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EACCES, errno.EPERM})

# splice: the kernel does not splice between these two descriptors. Copy instead.
UNSPLICEABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EBADF})

# write, open, rename: the file system takes nothing more, whatever the file: it is full, read-only, broken or gone.
OUTPUT_IS_GONE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ESTALE})


def name_of(code: int | None) -> str:
    """The symbolic name, ECONNRESET; the number as text when it has none."""
    return errno.errorcode.get(code or 0, str(code or 0))
