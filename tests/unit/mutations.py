"""Byte strings made wrong, for parsers of what strangers send."""

import random
from collections.abc import Iterator, Sequence


def mutations(vectors: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` strings, each a vector in which up to four things are wrong: a byte, a length, a piece lost, doubled, or of
    another vector."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(vectors))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(6):
                case 0 | 1:
                    data[at : at + 1] = bytes((rng.randrange(256),))
                case 2:
                    data[at : at + 2] = rng.choice((0, 1, 0xFF, 0x7FFF, 0xFFFF)).to_bytes(2)
                case 3:
                    del data[at : at + rng.randrange(1, 20)]
                case 4:
                    data[at:at] = data[at : at + rng.randrange(1, 20)]
                case _:
                    other = rng.choice(vectors)
                    data[at:] = other[rng.randrange(len(other)) :]
        yield bytes(data)
