"""What a reload changes: the difference of two plans, why one cannot follow the other, and how the outcome is reported.

RULES: pure; text in, text out. The report is one JSON text that fits the notice whole.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from balancer.prefork.plan import Plan
from balancer.shm.notice import NOTICE_BYTES


@dataclass(frozen=True)
class PlanChanges:
    """Names of what a reload adds, removes and changes."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(names)} {word}" for word, names in vars(self).items() if names]
        return ", ".join(parts) or "nothing changed"


def summary_of(plan: Plan) -> dict[str, str]:
    """A plan as names and values."""
    summary: dict[str, str] = {}
    for bind in plan.binds:
        key, count = f"bind {bind.address}", 1
        while key in summary:  # several addresses with port 0
            count += 1
            key = f"bind {bind.address} #{count}"
        owner = f"{bind.role} {bind.name}".rstrip()
        summary[key] = f"{owner} backlog={bind.backlog} mode={bind.mode:o}"
    summary |= {f"{role.name}s": str(role.count) for role in plan.roles}
    summary |= {"drain-timeout": f"{plan.drain_timeout:g}s", "steering": "on" if plan.steering else "off"}
    log = plan.log
    summary |= {"loglevel": str(log.level), "log-format": log.format, "log-sessions": log.sessions}
    return summary | dict(plan.summary)


def compare(old: Plan, new: Plan, living: int) -> PlanChanges:
    """What changes from one plan to the next. `living`: processes of the listening role, which may have been scaled."""
    before, after = summary_of(old), summary_of(new)
    before[f"{old.listening()}s"] = str(living)
    return PlanChanges(
        added=tuple(f"{name} {after[name]}" for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(
            f"{name} {before[name]} -> {after[name]}"
            for name in after
            if name in before and before[name] != after[name]
        ),
    )


def is_same(old: Plan, new: Plan) -> bool:
    """Whether a generation of one plan would be as one of the other: every value of both is equal."""
    return _values(old) == _values(new)


def _values(plan: Plan) -> list[object]:
    """All of a plan but functions, which cannot be compared (see Plan.made_from), and notes, which change nothing."""
    roles = [[getattr(role, one.name) for one in fields(role) if one.name != "run"] for role in plan.roles]
    names = (
        one.name for one in fields(plan) if one.name not in ("roles", "handover_state", "refresh", "notes")
    )
    return [roles, *(getattr(plan, name) for name in names)]


def obstacle(old: Plan, new: Plan) -> str:
    """Why a plan cannot follow another without a restart; empty when it can."""
    if new.columns != old.columns:  # a safety net: services ask for room that no reload outgrows
        return f"the shared table has {old.columns} columns and the new configuration needs {new.columns}"
    names = [role.name for role in old.roles], [role.name for role in new.roles]
    if names[0] != names[1]:
        return f"the processes are {', '.join(names[0])} and would become {', '.join(names[1])}"
    for name in ("user", "group", "pidfile", "log_path", "title"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            return f"{name.removesuffix('_path')} changes from {before or 'none'} to {after or 'none'}"
    return ""


def report(head: Mapping[str, object], text: str, changes: PlanChanges) -> str:
    """JSON of at most NOTICE_BYTES: names and text are cut until the whole object fits."""
    found = ""
    for longest in (100, 40, 8):  # characters of a name; one of them may take six bytes
        record: dict[str, object] = {**head, "text": text[: 8 * longest]}
        for word, names in vars(changes).items():
            record[word] = [name[:longest] for name in names[:10]]
        found = json.dumps(record, separators=(",", ":"))
        if len(found) <= NOTICE_BYTES:
            break
    return found
