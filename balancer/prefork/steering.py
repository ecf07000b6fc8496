"""Steering of new connections: shares per slot -> a BPF program that the kernel runs at each SYN.

RULES: all is pure but `attach` and `drop_syns`. SO_ATTACH_REUSEPORT_CBPF works without privileges, and the program
may be replaced at any time (0.2 ms a call). When the kernel refuses, its plain hash stays and the master logs that.
Never steer by CPU number: loopback puts every connection on one.

The program draws a random word, takes it modulo 1000, and walks the shares; what it returns is the index of a socket in
its group, in the order of listen(), which is the slot number:

    ld  rand
    mod #1000
    jge #500, next     ; slot 0 has a share of 500 per mille
    ret #0
    ret #2             ; slot 1 has none; slot 2 has the rest
"""

import ctypes
import math
import socket
import struct
from collections.abc import Sequence

SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF = 26, 51
WHOLE = 1000  # shares are per mille

LD_RANDOM = (0x20, 0, 0, 0xFFFFF000 + 56)  # BPF_LD|BPF_W|BPF_ABS at SKF_AD_OFF + SKF_AD_RANDOM
MOD, JGE, RET = 0x94, 0x35, 0x06
LD_TCP_FLAGS = (0x30, 0, 0, 13)  # BPF_LD|BPF_B|BPF_ABS; a filter of a TCP socket sees the TCP header first
AND, JEQ = 0x54, 0x15
SYN, SYN_OR_ACK = 0x02, 0x12

WORTH_LOADS = 4  # sessions between the most and the least loaded slot from which on shares differ
WORTH_RATIO = 0.2  # and at least this part of the mean
WORTH_SHARE = 50  # per mille a share must move before the kernel is told
MEMORY = 1.1  # seconds that a load is averaged over, see Smoother
GAIN = 4.0  # how much of an equal share the whole mean's worth of sessions costs (simulated: 3 too slow, 5 swings)
LEAST = 0.02  # of an equal share: the most loaded slot still gets some, its load is a second old

Instruction = tuple[int, int, int, int]


class Smoother:
    """Loads averaged over the last second or so, by slot.

    Shares made of the loads of an instant oscillate where sessions are much shorter than the time between two looks: the
    least loaded slot gets most, is the most loaded one at the next look, and gets least. With sessions of 20 ms on 4
    workers the most loaded then had 1.77 times the mean (the plain hash 1.27, averaged loads 1.28). Long sessions are
    evened out all the same, since their loads move slowly.
    """

    def __init__(self) -> None:
        self._known: dict[int, float] = {}
        self._looked = 0.0

    def smooth(self, loads: Sequence[int | None], now: float) -> list[float | None]:
        """The averages at `now`; a slot that was not eligible (None) begins anew with what it has."""
        kept = math.exp(min(0.0, self._looked - now) / MEMORY)
        self._looked = now
        self._known = {
            slot: load + (self._known.get(slot, load) - load) * kept
            for slot, load in enumerate(loads)
            if load is not None
        }
        return [self._known.get(slot) for slot in range(len(loads))]


def shares(loads: Sequence[float | None]) -> list[int]:
    """Per mille of new connections for each slot, summing to 1000; None = gets none.

    A slot with more than the mean gets less than an equal share, when the imbalance is worth it; one with a quarter more
    than the mean gets next to nothing, so that sessions that stay for ever cannot keep a slot far above the others.
    Never all 0: when no slot is eligible, all are.
    """
    known = [load for load in loads if load is not None]
    if not known:
        return portions([1.0] * len(loads))
    mean = sum(known) / len(known)
    if max(known) - min(known) <= max(WORTH_LOADS, WORTH_RATIO * mean):
        return portions([0.0 if load is None else 1.0 for load in loads])
    return portions(
        [0.0 if load is None else max(LEAST, 1.0 + GAIN * (mean - load) / mean) for load in loads]
    )


def portions(weights: Sequence[float]) -> list[int]:
    """Whole per mille in proportion to the weights, exact in sum; a weight above 0 never gets 0."""
    total = sum(weights)
    if not total:
        return [0] * len(weights)
    exact = [weight * WHOLE / total for weight in weights]
    parts = [max(1, int(part)) if part else 0 for part in exact]
    order = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    missing = WHOLE - sum(parts)
    for i in order[:missing] if missing > 0 else []:
        parts[i] += 1
    if missing < 0:  # what was rounded up from below 1 is taken from the largest
        parts[max(range(len(parts)), key=parts.__getitem__)] += missing
    return parts


def is_material(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether the kernel should be told: a slot comes or goes, or a share moved by at least 50 per mille."""
    if len(old) != len(new):
        return True
    return any(bool(a) != bool(b) or abs(a - b) >= WORTH_SHARE for a, b in zip(old, new, strict=True))


def program(parts: Sequence[int]) -> list[Instruction]:
    """The classic BPF for shares that sum to 1000. Raises ValueError when they do not."""
    if sum(parts) != WHOLE:
        raise ValueError(f"shares must sum to {WHOLE}, not {sum(parts)}")
    steered = [(slot, part) for slot, part in enumerate(parts) if part]
    code: list[Instruction] = []
    if len(steered) > 1:
        code += [LD_RANDOM, (MOD, 0, 0, WHOLE)]
    bound = 0
    for slot, part in steered[:-1]:
        bound += part
        code += [(JGE, 1, 0, bound), (RET, 0, 0, slot)]
    return [*code, (RET, 0, 0, steered[-1][0])]


def attach(sock: socket.socket, code: Sequence[Instruction]) -> None:
    """Give the program to the socket's whole group. Raises OSError when the kernel refuses."""
    _set_program(sock, SO_ATTACH_REUSEPORT_CBPF, code)


def drop_syns(sock: socket.socket) -> None:
    """Let a listening socket have no new clients, while those that it has queued can be accepted. Raises OSError.

    A dropped SYN is sent again after a second; the client then finds what listens there by then.
    """
    code = [LD_TCP_FLAGS, (AND, 0, 0, SYN_OR_ACK), (JEQ, 0, 1, SYN), (RET, 0, 0, 0), (RET, 0, 0, 0xFFFFFFFF)]
    _set_program(sock, SO_ATTACH_FILTER, code)


def _set_program(sock: socket.socket, option: int, code: Sequence[Instruction]) -> None:
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    fprog = struct.pack("@HP", len(code), ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, option, fprog)
