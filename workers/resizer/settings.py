"""What the processes of a resizer were told: one frozen value, made once per reading of the configuration.

RULES: plain values with their units, no parsing (that is the options' business), no defaults hidden
elsewhere.
"""

from dataclasses import dataclass, field

from workers.imaging.limits import PictureLimits

HEADROOM = 64 * 1024  # bytes of a slot beyond the biggest frame


@dataclass(frozen=True)
class Settings:
    """Sizes in bytes, times in seconds."""

    name: str = "resizer"
    cpus: int = 1
    fills_machine: bool = False  # there are as many CPU processes as cores, or more
    fronts: int = 1
    queue: int = 64  # pictures waiting per front
    express_bytes: int = 512 * 1024  # a picture of at most this size is small
    max_frame: int = 32 << 20
    limits: PictureLimits = field(default_factory=PictureLimits)
    job_timeout: float = 10.0
    frame_timeout: float = 10.0
    idle_timeout: float = 600.0  # 0: never
    http: bool = True
    maxconns: int = 4096  # clients per front that may ask for work
    pipeline: int = 32  # requests of one connection under way
    orient: str = "auto"  # auto: for peers that send an ID; yes; no
    icc: str = "drop"
    nice: int = 5
    affinity: bool = False
    memory: int = 2 << 30  # address space of a CPU process beyond the arena; 0: no limit
    recycle: int = 0  # pictures until a CPU process is replaced, plus or minus a tenth; 0: never

    @property
    def crew(self) -> int:
        """CPU processes of one front, the express one included (at least)."""
        return self.cpus // self.fronts + 1

    @property
    def slots(self) -> int:
        """Slots of one front: for all that may wait or be worked on, and some to arrive in or leave from."""
        return self.queue + self.crew * 2 + max(16, self.crew * 2)

    @property
    def slot_bytes(self) -> int:
        return self.max_frame + HEADROOM

    def wants_upright(self, has_id: bool) -> bool:
        """Whether the EXIF orientation is obeyed for this peer: the original program ignores it."""
        return has_id if self.orient == "auto" else self.orient == "yes"
