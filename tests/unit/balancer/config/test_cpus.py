"""How many CPUs a process may use: the affinity mask and the quotas of its cgroups."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from balancer.config.cpus import available_cores


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/host/only\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/d\n1:name=systemd:/x\n",
                "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/d/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        ({"proc/self/cgroup": "4:cpu:/d\n", "sys/fs/cgroup/cpu/d/cpu.cfs_quota_us": "-1"}, 8),
        ({"proc/self/cgroup": "rubbish", "sys/fs/cgroup/cpu.max": "rubbish"}, 8),
    ],
)
def test_auto_means_the_cpus_one_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert available_cores(write(tmp_path, files)) == cores
