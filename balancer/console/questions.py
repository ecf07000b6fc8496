"""The questions of operators that one look answers: what is asked changes nothing and leaves no line in the log.

RULES: reads the board and the configuration. What takes several processes (status, sessions) is commands.py's. What few
ask for is imported when it is asked for: every process of a balancer would keep it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from balancer.console.certificates import describe_certificates
from balancer.console.events import describe_events
from balancer.console.status import entrance_of
from balancer.edge.certificates import calendar_time
from balancer.eventloop.loop import Loop
from balancer.options import Options
from balancer.pool.board import Board

QUESTION_USAGES = {
    "status": "status",
    "events": "events [SINCE]",
    "sources": "sources",
    "certificates": "certificates",
    "errors": "errors",
    "sessions": "sessions [pool=NAME] [backend=NAME] [client=ADDRESS] [older=SECONDS] [id=ID] [draining]",
    "explain": "explain [listener=NAME] [source=ADDRESS] [sni=NAME] | option=NAME | session=ID",
}


class CommandRefused(Exception):
    """The command cannot be done; the text is for the person who typed it."""


class Questions:
    """Answers them. `answers`: by the first word; each takes the words behind it and raises CommandRefused."""

    def __init__(self, board: Board, options: Options, loop: Loop) -> None:
        self._board, self._options, self._loop = board, options, loop
        self._pools = {pool.name: pool for pool in options.pools}
        self.answers: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
            "events": self._events,
            "sources": self._sources,
            "certificates": self._certificates,
            "errors": self._errors,
            "explain": self._explain,
        }

    def answer(self, words: Sequence[str]) -> dict[str, Any]:
        """Raises CommandRefused."""
        return self.answers[words[0]](words[1:])

    def _events(self, since: Sequence[str]) -> dict[str, Any]:
        """The last events, or those after a serial."""
        if len(since) > 1:
            raise CommandRefused(f"usage: {QUESTION_USAGES['events']}")
        last = whole_number(since[0], "SINCE", 0, 1 << 53) if since else 0
        return describe_events(self._board, last, self._loop.now)

    def _sources(self, words: Sequence[str]) -> dict[str, Any]:
        from balancer.console.sources import describe_sources

        refuse_words("sources", words)
        return describe_sources(self._board, self._options.listeners, self._loop.now)

    def _certificates(self, words: Sequence[str]) -> dict[str, Any]:
        refuse_words("certificates", words)
        listeners, pools = self._options.listeners, self._options.pools
        return {"certificates": describe_certificates(self._board, listeners, pools, calendar_time())}

    def _errors(self, words: Sequence[str]) -> dict[str, Any]:
        from balancer.console.failures import describe_failures

        refuse_words("errors", words)
        return {"last": describe_failures(self._board, self._loop.now, calendar_time())}

    def _explain(self, conditions: Sequence[str]) -> dict[str, Any]:
        """Which way a client would go, or where the value of an option comes from."""
        told = dict(word.partition("=")[::2] for word in conditions)
        if set(told) == {"option"}:
            return self._explain_option(told["option"])
        if set(told) == {"session"}:
            return self._explain_session(told["session"])
        if unknown := told.keys() - {"listener", "source", "sni"}:
            raise CommandRefused(f"usage: {QUESTION_USAGES['explain']}, not {' '.join(sorted(unknown))!r}")
        by_name = {one.name: one for one in self._options.listeners}
        name = told.get("listener") or (next(iter(by_name)) if len(by_name) == 1 else "")
        if name not in by_name:
            what = f"no listener is called {name!r}" if name else "the listener has to be named"
            raise CommandRefused(f"{what}; there are: {', '.join(by_name)}")
        from balancer.console.explain import explain

        try:
            shut = entrance_of(self._board, self._options.listeners, self._loop.now).shut
            return explain(
                self._board, by_name[name], self._pools, told.get("source", ""), told.get("sni", ""), shut
            )
        except ValueError as error:
            raise CommandRefused(f"source: {error}") from None

    def _explain_option(self, word: str) -> dict[str, Any]:
        from balancer.console.explain_option import UnknownOption, explain_option

        try:
            return explain_option(word, self._options.sections)
        except UnknownOption as error:
            raise CommandRefused(str(error)) from None

    def _explain_session(self, word: str) -> dict[str, Any]:
        from balancer.console.explain_session import NoRecord, explain_session

        try:
            which = self._options.process.record_elections
            return explain_session(self._board, self._pools, word, self._loop.now, calendar_time(), which)
        except NoRecord as error:
            raise CommandRefused(str(error)) from None


def refuse_words(question: str, words: Sequence[str]) -> None:
    """Raises CommandRefused for words behind a question that takes none."""
    if words:
        raise CommandRefused(f"usage: {QUESTION_USAGES[question]}")


def whole_number(text: str, what: str, least: int, most: int) -> int:
    """Raises CommandRefused naming the range."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= 16
    if not is_number or not least <= int(text) <= most:
        raise CommandRefused(f"{what} is a whole number from {least} to {most}, not {text[:40]!r}")
    return int(text)
