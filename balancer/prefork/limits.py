"""Resource limits of a process: descriptors, core files, the order of the kernel's OOM killer."""

import resource


def raise_file_limit() -> int:
    """Descriptors this process may have, the soft limit raised to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard


def limit_child() -> None:
    """No core file, which would hold clients' traffic; and the kernel's OOM killer takes a child before the master."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            score = int(file.read())
            file.write(b"%d" % min(1000, score + 100))
    except (OSError, ValueError):
        pass
