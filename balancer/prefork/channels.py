"""Channels: a SOCK_SEQPACKET pair for each slot of a role that asks for one, open for as long as its generation lives.

RULES: one end (`far`) is for the process in the slot, the other (`near`) for every process of the roles without
channels. The master holds both, so a replaced process finds what was sent to its predecessor. Pairs belong to one
generation: two fronts must not read one another's answers. The kernel tells the near end which process has sent a packet
(SO_PASSCRED), whatever the packet says.
"""

import socket
from collections.abc import Mapping

from balancer.prefork.child import ChildSpec
from balancer.prefork.plan import Plan


class Channels:
    """The pairs of all generations, by (generation, role, slot)."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, str, int], tuple[socket.socket, socket.socket]] = {}

    def open(self, plan: Plan, generation: int) -> None:
        """Make the pairs of a generation. Raises OSError."""
        for role in plan.roles:
            for slot in range(role.count if role.channel else 0):
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self._pairs[generation, role.name, slot] = pair

    def close(self, generation: int) -> None:
        """After the end of the generation's last process."""
        for key in [key for key in self._pairs if key[0] == generation]:
            for end in self._pairs.pop(key):
                end.close()

    def take(
        self, spec: ChildSpec, has_channel: bool
    ) -> tuple[Mapping[str, tuple[socket.socket, ...]], socket.socket | None]:
        """In a forked child: keep its own ends, close all others.

        Near ends by role for a process without channel; the far end of its own slot for one with a channel.
        """
        kept: dict[str, tuple[socket.socket, ...]] = {}
        own: socket.socket | None = None
        for key, (near, far) in sorted(self._pairs.items()):
            generation, role, _ = key
            if generation == spec.generation and not has_channel:
                kept[role] = (*kept.get(role, ()), near)
                far.close()
            elif key == (spec.generation, spec.role, spec.slot):
                own = far
                kept[role] = (far,)
                near.close()
            else:
                near.close()
                far.close()
        return kept, own
