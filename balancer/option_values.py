"""Values that only options of `balancer` have, and their readers. Each raises ValueError with a sentence."""

import os
import stat
from dataclasses import dataclass, field

from balancer.config.option import at_least, between
from balancer.config.units import format_duration, parse_count, parse_positive_duration


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{format_duration(self.seconds)}"


def parse_rate(text: str) -> Rate:
    """The rate of "60/1m"."""
    count, slash, period = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is no rate: write 60/1m")
    period = period.strip()
    return Rate(
        at_least(1, parse_count)(count), parse_positive_duration("1" + period if period.isalpha() else period)
    )


def parse_one_in(text: str) -> str:
    """ "off", or "1/N" with N from 1 to 1,000,000."""
    if text == "off":
        return text
    one, slash, count = text.partition("/")
    if one.strip() != "1" or not slash:
        raise ValueError(f"{text!r} is neither off nor one in N: write 1/100")
    return f"1/{between(1, 1_000_000)(count.strip())}"


def parse_hash_load(text: str) -> int:
    """The percent of "150" or "150%"; 0, or above 100."""
    percent = between(0, 10_000)(text.strip().removesuffix("%").strip())
    if 0 < percent <= 100:
        raise ValueError(f"{text!r} leaves no room above the mean load: write 125 to 200, or 0 for no limit")
    return percent


def parse_mask(text: str) -> tuple[int, int]:
    """The bits of "32/64"."""
    four, slash, six = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is no pair of bits: write 32/64, for IPv4 and IPv6")
    return between(0, 32)(four), between(0, 128)(six)


SHORTEST_TOKEN, LONGEST_TOKEN = 16, 512  # characters


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A secret that whoever acts over HTTP has to know. Of the token itself only the SHA-256 is kept."""

    path: str
    digest: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.path


def _open_to_others(path: str) -> str:
    """A directory on the way to a file, or to what a link means, in which others may rename what is not theirs; empty
    when there is none. Raises OSError."""
    for place in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        while (directory := os.path.dirname(place)) != place:
            mode = os.stat(directory).st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return directory
            place = directory
    return ""


def parse_token_file(path: str) -> TokenFile:
    """The token in a file that others may neither read, write nor replace: one line without blanks."""
    import hashlib  # 0.5 MB in every process, which only those with a token pay

    if "\0" in path:
        raise ValueError(f"cannot read {path!r}: it is no path")
    try:
        # A FIFO would wait for its writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is no file")
            if status.st_mode & stat.S_IRWXO:
                raise ValueError(
                    f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: others may read or write it; "
                    "chmod 0600, or 0640 for a group"
                )
            line = file.read(LONGEST_TOKEN + 3)
        if directory := _open_to_others(path):
            raise ValueError(f"others may put another file in the place of {path}: chmod o-w {directory}")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    token = line.strip(b"\r\n")
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
        raise ValueError(
            f"{path} holds no token of {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters; "
            "openssl rand -hex 24 makes one"
        )
    if not all(33 <= byte <= 126 for byte in token):
        raise ValueError(f"{path} is to hold one token in one line: ASCII, without blanks")
    return TokenFile(path, hashlib.sha256(token).digest())
