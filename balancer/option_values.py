"""Values that only options of `balancer` have, and their readers. Each raises ValueError with a sentence."""

from dataclasses import dataclass

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
