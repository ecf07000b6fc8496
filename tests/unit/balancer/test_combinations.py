"""Options that cannot work together are refused, those without effect beside others are noted."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from balancer.config.option import ConfigError
from balancer.configuration import parse

SERVE = ["-p", "9090"]
TCP, UNIX = ["-u", "10.0.0.1:9000"], ["-u", "unix:/run/s.sock"]
DNS, SRV = ["-u", "dns:web.test:9000"], ["-u", "srv:_web._tcp.test"]
TLS, PROXY = ["--tls", "--tls-sni", "web.test"], ["--send-proxy", "v2"]
FRAMED = ["--mode", "framed", "--frame", "gowork"]


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as refused:
        parse([*SERVE, *words, "--check-config"], {})
    return str(refused.value)


def notes(*words: str) -> tuple[str, ...]:
    return parse([*SERVE, *words], {}).notes


@pytest.mark.parametrize("upstream", [TCP, UNIX, DNS, SRV], ids=lambda words: words[1])
@pytest.mark.parametrize("what, part", [(TLS, "speaks TLS"), (PROXY, "expects a PROXY header")])
def test_an_agent_is_not_asked_where_its_question_is_not_understood(
    upstream: Sequence[str], what: Sequence[str], part: str
) -> None:
    asked = ["--agent-path", "/agent"]
    said = refusal(*upstream, *what, *asked)
    assert said.startswith(f"--agent-path: the agent would be asked at {upstream[1]}") and part in said
    assert "agent-port" in said
    assert parse([*upstream, *what, *asked, "--agent-port", "9001"], {}).notes == ()
    assert parse([*upstream, *what], {}).notes == ()


@pytest.mark.parametrize("upstream", [TCP, DNS], ids=lambda words: words[1])
@pytest.mark.parametrize("more", [[], TLS, PROXY, [*TLS, "--agent-path", "/"], [*PROXY, "--agent-path", "/"]])
def test_the_port_that_serves_is_none_of_an_agent_said_in_words_either(
    upstream: Sequence[str], more: Sequence[str]
) -> None:
    assert refusal(*upstream, *more, "--agent-port", "9000").startswith("--agent-port: the agent would be")


@pytest.mark.parametrize("upstream", [TCP, UNIX, DNS, SRV], ids=lambda words: words[1])
def test_an_agent_over_http_may_answer_where_it_serves(upstream: Sequence[str]) -> None:
    assert notes(*upstream, "--agent-path", "/agent") == ()
    assert notes(*upstream, *FRAMED, "--agent-path", "/agent") == ()


def test_one_backend_of_many_is_enough_and_the_place_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.ini"
    path.write_text(
        "[listener l]\nport = 1\npool = b\n[pool a]\nupstream = x:1\ntls = yes\n[pool b]\nupstream = y:1, z:9\n"
        "agent-port = 9\n"
    )
    with pytest.raises(ConfigError, match=rf"^{path}:9: agent-port: the agent would be asked at z:9"):
        parse(["-c", str(path)], {})


def test_a_check_at_an_address_needs_a_port_where_the_backend_has_none() -> None:
    check = ["--check", "tcp address=127.0.0.1"]
    assert refusal(*TCP, *UNIX, *check).startswith(
        "--check: address=127.0.0.1 needs port=N: unix:/run/s.sock"
    )
    assert notes(*TCP, *check) == () == notes(*UNIX, "--check", "tcp address=127.0.0.1 port=9")


@pytest.mark.parametrize("words", ["10.0.0.5 family=6", "10.0.0.5 family=prefer-6", "2001:db8::5 family=4"])
def test_a_set_of_another_ip_version_than_its_sources_is_refused(words: str) -> None:
    said = refusal("-u", f"dns:web.test:80 source={words}")
    assert said.endswith(f"nothing can be connected from {words.split()[0]} with {words.split()[1]}")


@pytest.mark.parametrize(
    "words, family",
    [
        ("", ""), ("source=10.0.0.5", "4"), ("source=2001:db8::5", "6"), ("source=10.0.0.5,2001:db8::5", ""),
        ("source=2001:db8::5 family=prefer-6", "prefer-6"), ("source=10.0.0.5 family=both", "both"),
    ],
)  # fmt: skip
def test_a_set_is_asked_for_addresses_that_its_sources_can_reach(words: str, family: str) -> None:
    for backend in parse(["-u", f"dns:web.test:80 slots=2 {words}"], {}).pools[0].backends:
        assert backend.set is not None and backend.set.family == family


@pytest.mark.parametrize(
    "words, cure",
    [
        (["--hash-load", "150"], ["--balance", "maglev"]),
        (["--slow-start", "9s", "--balance", "source"], ["--balance", "p2c"]),
        (["--slow-start", "9s", "--balance", "first"], ["-u", "10.0.0.2:1 maxconn=2"]),
        (["--check-rise", "5", "--check", "none"], None),
        (["--agent-interval", "5s"], ["--agent-port", "9001"]),
        (["--max-queue", "5", "--queue-timeout", "0"], ["--queue-timeout", "1s"]),
        (["--on-down", "close", *FRAMED], None),
        (["--resolver", "10.0.0.53"], ["-u", "dns:web.test:80"]),
        (["--max-frame", "1m"], FRAMED),
        (["--frame-timeout", "1s"], FRAMED),
        (["--order", "any"], FRAMED),
        (["--pipeline", "3"], FRAMED),
        (["--frame-retries", "3"], FRAMED),
        (["--retry-buffer", "3m"], FRAMED),
        (["--idle-backend-timeout", "3s"], FRAMED),
        (["--backend-conns", "3"], FRAMED),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_noted(words: Sequence[str], cure: Sequence[str] | None) -> None:
    [note] = notes(*TCP, *words)
    assert note.startswith((f"{words[0]} has no effect ", f"{words[0]} has no effect: "))
    assert notes(*TCP) == () and (cure is None or notes(*TCP, *words, *cure) == ())


def test_a_weight_and_a_hash_without_anything_to_weigh_are_noted() -> None:
    [note] = notes(*TCP, "-u", "10.0.0.2:1 weight=2", "--balance", "first")
    assert note == "--upstream: weight has no effect with balance = first"
    words = [*TCP, "--balance", "source"]
    [note] = parse(["--bind", "unix:/run/front.sock", *words], {}).notes
    assert note.startswith("--balance has no effect where all clients come over unix sockets")
    assert not parse(["--bind", "unix:/run/front.sock, :9090", *words], {}).notes
    assert not parse(["--bind", "unix:/run/front.sock", "--proxy-protocol", *words], {}).notes


@pytest.mark.parametrize("what, lacks", [(TLS, "TLS"), (PROXY, "a PROXY header")])
def test_a_check_at_the_port_that_serves_is_noted_where_it_speaks_otherwise(
    what: Sequence[str], lacks: str
) -> None:
    [note] = notes(*TCP, *what, "--check", "http GET / port=9000")
    assert note.startswith("--check: port=9000 is where") and f"without {lacks} there" in note
    for check in ("http GET /", "http GET / port=9001", "http GET / port=9000 sni=web.test proxy=yes"):
        assert not [one for one in notes(*TCP, *what, "--check", check) if "--check" in one]


def test_what_pools_inherit_is_noted_only_when_it_has_no_effect_in_any(tmp_path: Path) -> None:
    text = (
        "[balancer]\nhash-load = 150\n[listener l]\nport = 1\nroute =\n    from 10.0.0.0/8 -> a\n    -> b\n"
        "[pool a]\nupstream = x:1\n[pool b]\nupstream = y:1\n"
    )
    path = tmp_path / "c.ini"
    path.write_text(text)
    [note] = parse(["-c", str(path)], {}).notes
    assert note.startswith(f"{path}:2: hash-load has no effect with balance = leastconn")
    path.write_text(text + "balance = maglev\n")
    assert parse(["-c", str(path)], {}).notes == ()
