"""The pages over HTTP: each view whole, and what has changed of it since a version.

RULES: a view is made once from a status, for all who ask. The state of a view that nobody asks for any more is dropped.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from balancer.console.history import Sampler
from balancer.console.page import WHOLE, BalancerPage
from balancer.eventloop.http import HttpAnswer
from balancer.web.changes import Changes
from balancer.web.page import CONTENT_TYPE, headers, page
from balancer.web.view import View

MOST_VIEWS = 32  # whose changes are kept
ALWAYS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))

Status = Mapping[str, Any]


class Pages:
    """`views`: the names of those that there are, without the whole. `has_acts`: whether backends have a form."""

    def __init__(
        self,
        sampler: Sampler,
        views: frozenset[str],
        epoch: str,
        now: Callable[[], float],
        has_acts: bool = False,
    ) -> None:
        self._sampler = sampler
        self._views = views | {WHOLE}
        self._epoch = epoch
        self._now = now
        self._has_acts = has_acts
        self._begun = 0
        self._changes: dict[str, Changes] = {}
        self._made: dict[str, tuple[Status, View]] = {}

    def paths(self) -> dict[str, Callable[[Status], HttpAnswer]]:
        """The path of each page, and how it is made."""
        return {f"/{view}": lambda status, view=view: self.whole(status, view) for view in self._views}  # type: ignore[misc]

    def whole(self, status: Status, view: str = WHOLE) -> HttpAnswer:
        """The page."""
        found, changes = self._current(status, view)
        body = page(found, changes.version).encode("utf-8", "replace")
        return HttpAnswer(200, (("Content-Type", CONTENT_TYPE), *ALWAYS, *headers(found)), body)

    def canonical(self, query: str) -> str:
        """One spelling of a query that asks for changes: equal answers have equal words. Empty if it does not ask."""
        fields = (
            dict(parse_qsl(query, keep_blank_values=True, max_num_fields=8)) if query.count("&") < 8 else {}
        )
        view = fields.get("view", WHOLE)
        if "since" not in fields or view not in self._views:
            return ""
        known = self._changes.get(view)
        return f"{known.canonical(fields['since']) if known else ''} {view}"

    def since(self, status: Status, canonical: str) -> HttpAnswer:
        """What has changed: the answer to a query that `canonical` has spelt."""
        version, _, view = canonical.partition(" ")
        _, changes = self._current(status, view)
        body = json.dumps(changes.since(version), separators=(",", ":"), default=str).encode(
            "utf-8", "replace"
        )
        return HttpAnswer(200, (("Content-Type", "application/json"), *ALWAYS), body)

    def _fresh(self) -> Changes:
        """With an epoch of its own: a view that was dropped begins anew."""
        self._begun += 1
        return Changes(f"{self._epoch}.{self._begun}")

    def _current(self, status: Status, view: str) -> tuple[View, Changes]:
        changes = self._changes.pop(view, None) or self._fresh()
        self._changes[view] = changes  # the last one of all
        while len(self._changes) > MOST_VIEWS:
            oldest = next(iter(self._changes))
            del self._changes[oldest]
            self._made.pop(oldest, None)
        before, found = self._made.get(view, (None, None))
        if found is None or before is not status:
            found = BalancerPage(status, self._sampler, self._now(), view, self._has_acts).render()
            changes.update(found)
            self._made[view] = status, found
        return found, changes
