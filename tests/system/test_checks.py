"""Checks that know the service, against real servers: what works is up, what does not work is found although it accepts,
and the servers' logs have nothing to complain of."""

import contextlib
import os
import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from scripts.lab.backends import Echo, Scripted
from scripts.lab.network import Address, free_port, text_of
from scripts.lab.process import freeze
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, Resizer, ini_section
from tests.system.services import Mail, Postgres, Redis, mosquitto, nginx
from tests.system.upgradable import UpgradableBalancer, status_or_none, subreaper

PATIENCE = 20.0  # seconds; a passing run does not wait for them
INTERVAL = 0.2


def balancer(checks: dict[str, tuple[Address, str]], **keys: object) -> FileBalancer:
    """A balancer with a pool of one backend for each check; a listener leads to them all in turn."""
    text = ini_section("balancer", check_interval=f"{INTERVAL}s", connect_timeout="2s", **keys)
    text += ini_section("listener main", bind="127.0.0.1:0", pool=next(iter(checks)))
    for name, (address, check) in checks.items():
        text += ini_section(
            f"pool {name}", upstream=f"{text_of(address)} name={name}", check=check.split("\n")
        )
    lb = FileBalancer(text)
    lb.expect("all-down")
    return lb


def directory(base: Path, name: str) -> Path:
    (base / name).mkdir()
    return base / name


def test_services_that_work_are_up_and_have_nothing_to_complain_of(tmp_path: Path) -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(Redis(directory(tmp_path, "redis")))
        postgres = stack.enter_context(Postgres())
        mqtt, broker = stack.enter_context(mosquitto(directory(tmp_path, "mosquitto")))
        web, _ = stack.enter_context(nginx(directory(tmp_path, "nginx")))
        mail, other = stack.enter_context(Mail()), stack.enter_context(Mail())
        resizer = stack.enter_context(Resizer(cpus=1))
        checks = {
            "redis": (redis.address, "redis role=primary"),
            "script": (redis.address, 'send "info replication\\r\\n"\nexpect "role:"\nexpect ^"master"'),
            "postgres": (postgres.address, "pgsql user=check role=primary"),
            "stranger": (postgres.address, "pgsql user=nobody-of-this-name"),
            "mqtt": (mqtt, "mqtt"),
            "web": (web, "http GET /ready expect=200 host=web.test"),
            "beside": (mail.address, f"http GET /ready port={web[1]} address={web[0]}"),
            "mail": (mail.address, "smtp"),
            "resizer": (resizer.address, "frame"),
            # what accepts, and is something else or does not work
            "broken": (web, "http GET /broken"),
            "wrong": (other.address, "redis"),
            "replica": (postgres.address, "pgsql user=check role=replica"),
        }
        lb = stack.enter_context(balancer(checks))
        down = {"broken": "status", "wrong": "reply", "replica": "reply"}

        def are_checked() -> bool:
            found = {each["name"]: each for each in lb.status()["backends"]}
            return all(each["checks_total"] >= 5 for each in found.values()) and all(
                found[name]["state"] == "down" for name in down
            )

        wait_for(are_checked, "each is checked", PATIENCE)
        for each in lb.status()["backends"]:
            wanted = ("down", down[each["name"]]) if each["name"] in down else ("up", "ok")
            assert (each["state"], each["check"]) == wanted, each
            assert each["name"] in down or not each["check_failures_total"], each
        said = {name: lb.wait_line(rf" down .*\bbackend={name} .*\bgot=(.*?) up=")[1] for name in down}
        assert said["broken"].startswith('"HTTP/1.1 503') and said["replica"] == "in_hot_standby=off"
        assert said["wrong"].startswith('"220-mail.test')
        lb.stop()
        wait_for(lambda: mail.quits >= 5, "mail checks")
        assert mail.lost == 0 and other.lost > 0
        complaints = r"connection reset|unexpected EOF|incomplete startup|invalid|could not (send|receive)"
        assert not re.search(complaints, postgres.log_path.read_text()), postgres.log_path.read_text()[-2000:]
        talks = broker.log().partition("CONNACK")[2]  # before it, the look whether the broker is reachable
        assert talks and not re.search(r"(?i)error|closed its connection", talks), talks[-2000:]
        assert "GET /ready HTTP/1.1" in (tmp_path / "nginx" / "access").read_text()
        assert not re.search(r"\[(error|warn)\]", (tmp_path / "nginx" / "errors").read_text())


def test_a_resizer_that_accepts_and_does_not_work_is_found() -> None:
    with Resizer(cpus=1) as resizer, balancer({"resizer": (resizer.address, "frame timeout=500ms")}) as lb:
        wait_for(lambda: lb.backend("resizer")["checks_total"] >= 2, "checks", PATIENCE)
        (front,) = resizer.pids("front")
        freeze(front)  # the kernel goes on accepting
        lb.wait_line(r"\bdown .*backend=resizer .*check=timeout", PATIENCE)
        lb.wait_backend("resizer", "up", PATIENCE)  # its master has replaced the front
        resizer.expected_exit = None
        resizer.expect(" hang ")


def test_sessions_of_a_demoted_server_end_where_the_pool_wants_that(tmp_path: Path) -> None:
    """Redis keeps its clients when it is demoted: the balancer ends their sessions, with end DD."""
    with Redis(directory(tmp_path, "redis")) as redis, ExitStack() as stack:
        text = ini_section("balancer", check_interval=f"{INTERVAL}s", check="redis role=primary", loglevel=1)
        for name, on_down in (("closing", "close"), ("keeping", "keep")):
            text += ini_section(f"listener {name}", bind=f"unix:{tmp_path}/{name}", pool=name)
            upstream = f"{text_of(redis.address)} name={name}"
            text += ini_section(f"pool {name}", upstream=upstream, on_down=on_down)
        lb = FileBalancer(text)
        lb.expect("all-down")
        stack.enter_context(lb)
        clients = {}
        for name in ("closing", "keeping"):
            clients[name] = stack.enter_context(socket.socket(socket.AF_UNIX))
            clients[name].settimeout(PATIENCE)
            clients[name].connect(f"{tmp_path}/{name}")
            clients[name].sendall(b"PING\r\n")
            assert clients[name].recv(100) == b"+PONG\r\n"
        redis.demote()
        with contextlib.suppress(ConnectionResetError):
            assert clients["closing"].recv(100) == b""
        lb.wait_line(r" session client=\S* .*\bbackend=closing end=DD ", PATIENCE)
        clients["keeping"].sendall(b"PING\r\n")
        assert clients["keeping"].recv(100) == b"+PONG\r\n"
        assert [each["ends"]["DD"] for each in lb.status()["listeners"]] == [1, 0]


def test_sessions_of_a_server_that_is_demoted_end_also_in_the_workers_that_an_upgrade_has_replaced(
    tmp_path: Path,
) -> None:
    """Its sessions drain on a board of their own, which the successor's prober does not know."""
    with ExitStack() as stack:
        stack.enter_context(subreaper())
        echo, checked = stack.enter_context(Echo()), stack.enter_context(Echo())
        lb = UpgradableBalancer(
            tmp_path,
            upstreams=[echo.address],
            check=f"tcp port={checked.address[1]}",
            check_interval=f"{INTERVAL}s",
            on_down="close",
            drain_timeout="40s",
        )
        lb.expect("all-down")
        stack.enter_context(lb)
        client = stack.enter_context(socket.create_connection(lb.address, PATIENCE))
        client.settimeout(PATIENCE)
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        lb.upgrade()
        old = lb.old
        client.sendall(b"y")
        assert client.recv(1) == b"y"
        checked.close()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert old.wait(PATIENCE) == 0
        wait_for(lambda: status_or_none(lb), "a status of the successor", PATIENCE)
        lb.stop()


def shares(lb: FileBalancer, count: int = 200) -> dict[str, float]:
    """The part of `count` new sessions that each backend is given."""
    before = {each["name"]: each["sessions_total"] for each in lb.status()["backends"]}
    for _ in range(count):
        with socket.create_connection(lb.address, PATIENCE) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    return {
        each["name"]: (each["sessions_total"] - before[each["name"]]) / count
        for each in lb.status()["backends"]
    }


def test_an_agent_that_says_less_gets_less_and_its_share_back(tmp_path: Path) -> None:
    """One agent for both backends would not do: each has an address of its own, and the agents share a port."""
    port, words = free_port(), {"127.0.0.1": "ready up 100%", "127.0.0.2": "ready up 100%"}
    with ExitStack() as stack:
        echoes = {}
        for host in words:
            agent = Scripted(lambda conn, host=host: conn.sendall(words[host].encode()), host, port)
            stack.enter_context(agent)
            echoes[host] = stack.enter_context(Echo(host))
        upstream = [f"{text_of(echo.address)} name={host}" for host, echo in echoes.items()]
        text = ini_section("balancer", agent_interval=f"{INTERVAL}s", balance="roundrobin")
        text += ini_section("listener a", bind="127.0.0.1:0", pool="a")
        text += ini_section("pool a", upstream=upstream, agent_port=port)
        lb = stack.enter_context(FileBalancer(text))
        wait_for(lambda: {one["agent"] for one in lb.status()["backends"]} == {"ready"}, "agents", PATIENCE)
        assert 0.4 < shares(lb)["127.0.0.2"] < 0.6
        words["127.0.0.2"] = "ready up 5%"
        wait_for(lambda: lb.backend("127.0.0.2")["share_percent"] == 5, "a smaller share", PATIENCE)
        assert shares(lb)["127.0.0.2"] < 0.1, "a fifth of its half"
        words["127.0.0.2"] = "drain"
        lb.wait_backend("127.0.0.2", "agent", PATIENCE)
        assert shares(lb, 20)["127.0.0.2"] == 0
        words["127.0.0.2"] = "ready up 100%"
        lb.wait_backend("127.0.0.2", "up", PATIENCE)
        assert 0.4 < shares(lb)["127.0.0.2"] < 0.6


def test_what_an_agent_has_said_once_outlives_reload_upgrade_and_prober(tmp_path: Path) -> None:
    """Operator, agent and check keep their order: none lifts what another has decided, whichever process decides now."""
    said = "drain 50%"
    with ExitStack() as stack:
        stack.enter_context(subreaper())
        echo = stack.enter_context(Echo())
        agent = stack.enter_context(Scripted(lambda conn: conn.sendall(said.encode())))
        name = text_of(echo.address)
        lb = UpgradableBalancer(
            tmp_path,
            upstreams=[echo.address],
            agent_port=agent.address[1],
            agent_interval=f"{INTERVAL}s",
            check_interval=f"{INTERVAL}s",
            check_fall=1,
        )
        lb.expect(r"all-down|\breap\b|\bagent\b")
        stack.enter_context(lb)
        lb.wait_backend(name, "agent", PATIENCE)

        def goes_on_out() -> None:
            asked = agent.ever
            wait_for(lambda: agent.ever > asked + 1, "the next answers of the agent", PATIENCE)
            assert (lb.backend(name)["state"], lb.backend(name)["share_percent"]) == ("agent", 50)

        said = "up 50%"  # no `ready`
        goes_on_out()
        assert lb.ctl("reload").returncode == 0
        goes_on_out()

        def prober() -> int:
            return next((pid for pid, title in lb.titles().items() if ": prober" in title), 0)

        for line, state in (("up 50%", "out"), ("down#out of memory", "down")):
            said = line
            wait_for(lambda state=state: lb.backend(name)["agent"] == state, f"agent {state}", PATIENCE)
            os.kill(former := prober(), signal.SIGKILL)
            wait_for(lambda former=former: prober() not in (0, former), "the next prober", PATIENCE)
        said = "up 50%"  # neither `down` nor the death of the prober has ended its `drain`
        lb.wait_backend(name, "agent", PATIENCE)
        goes_on_out()
        lb.upgrade()
        wait_for(lambda: status_or_none(lb), "a status of the successor", PATIENCE)
        goes_on_out()
        assert lb.ctl("maint", name).returncode == 0
        lb.wait_backend(name, "maint", PATIENCE)
        assert lb.ctl("ready", name).returncode == 0
        lb.wait_backend(name, "agent", PATIENCE)
        said = "ready up 100%"
        lb.wait_backend(name, "up", PATIENCE)
        lb.stop()


def test_the_agent_of_a_resizer_is_asked_on_its_own_port() -> None:
    with Resizer(cpus=1) as resizer:
        text = ini_section("balancer", agent_interval=f"{INTERVAL}s")
        text += ini_section("listener a", bind="127.0.0.1:0", pool="a")
        text += ini_section(
            "pool a", upstream=f"{text_of(resizer.address)} name=resizer", agent_path="/agent"
        )
        lb = FileBalancer(text)
        lb.expect("all-down")
        with lb:
            wait_for(lambda: lb.backend("resizer")["agent"] == "ready", "its agent", PATIENCE)
            assert lb.backend("resizer")["share_percent"] == 100
