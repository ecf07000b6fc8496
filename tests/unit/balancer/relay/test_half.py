"""The accounting as transcripts: verbs on two halves, and what they ask for next."""

import pytest

from balancer.relay.half import (
    CLOSE,
    GO_ON,
    LIMIT,
    LINGER,
    RESET_BACKEND,
    RESET_CLIENT,
    RESUME,
    SHUT,
    SHUT_BACKEND,
    SHUT_CLIENT,
    Half,
    next_step,
)

NAMES = {
    "go on": GO_ON,
    "shut backend": SHUT_BACKEND,
    "shut client": SHUT_CLIENT,
    "close": CLOSE,
    "reset client": RESET_CLIENT,
    "reset backend": RESET_BACKEND,
    "linger": LINGER,
}
TRANSCRIPTS = {
    "nothing happened": [
        "go on",
    ],
    "request, answer, client ends, backend ends": [
        "up took 10", "up gave 10", "down took 20", "down gave 20", "go on", "up ended", "shut backend",
        "up shut", "go on", "down ended", "close",
    ],
    "backend ends first": [
        "down ended", "shut client", "down shut", "go on", "up took 5", "up gave 5", "up ended", "close",
    ],
    "an end waits for the bytes before it": [
        "up took 9", "up ended", "go on", "up gave 8", "go on", "up gave 1", "shut backend",
    ],
    "both end in one instant": [
        "up ended", "down ended", "close",
    ],
    "both end, one with bytes to come": [
        "down took 3", "down ended", "up ended", "shut backend", "up shut", "go on", "down gave 3", "close",
    ],
    "backend resets after its answer": [
        "down took 9", "down broke", "up sink_gone", "go on", "down gave 9", "reset client",
    ],
    "backend resets, client resets too": [
        "down broke", "up sink_gone", "reset client", "up broke", "close",
    ],
    "client resets with an upload to deliver": [
        "up took 9", "up broke", "down sink_gone", "go on", "up gave 9", "reset backend",
    ],
    "backend answered, ended and refuses the upload": [
        "down took 4", "down gave 4", "down ended", "shut client", "down shut", "up took 7", "up sink_gone",
        "linger", "up took 7", "linger", "up ended", "close",
    ],
    "client ended, then is gone": [
        "up ended", "shut backend", "up shut", "down took 5", "down sink_gone", "reset backend",
    ],
    "a reset that a failed write has consumed is not an end": [
        "down doomed", "up sink_gone", "down ended", "reset client",
    ],
}  # fmt: skip


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_transcript(transcript: str) -> None:
    halves = {"up": Half(), "down": Half()}
    for line in TRANSCRIPTS[transcript]:
        if line in NAMES:
            assert next_step(halves["up"], halves["down"]) == NAMES[line], f"at {line!r}"
            continue
        name, verb, *amount = line.split()
        if verb == "doomed":
            halves[name].doomed = True
        else:
            getattr(halves[name], verb)(*map(int, amount))
        assert all(half.is_sound() for half in halves.values()), f"after {line!r}"


def test_amounts_add_up() -> None:
    half = Half()
    half.took(100)
    half.gave(60)
    assert (half.taken, half.given, half.pending, half.lost) == (100, 60, 40, 0)
    half.sink_gone()
    half.took(5)
    assert (half.taken, half.given, half.pending, half.lost) == (105, 60, 0, 45)


def test_a_paused_half_resumes_at_half_of_the_limit() -> None:
    half = Half()
    half.took(LIMIT)
    half.pause()
    half.pause()
    assert half.pauses == 1
    half.gave(LIMIT - RESUME - 1)
    assert half.paused
    half.gave(1)
    assert not half.paused


def test_fin_is_sent_once() -> None:
    half = Half()
    half.ended()
    half.shut()
    assert half.sink == SHUT
    assert next_step(half, Half()) == GO_ON
