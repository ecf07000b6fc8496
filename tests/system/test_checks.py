"""Checks that know the service, against real servers: what works is up, what does not work is found although it accepts,
and the servers' logs have nothing to complain of."""

import re
import time
from contextlib import ExitStack
from pathlib import Path

from scripts.lab.network import Address, text_of
from scripts.lab.process import freeze
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, Resizer, ini_section
from tests.system.services import Mail, Postgres, Redis, mosquitto, nginx

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


def test_a_demoted_server_is_left_in_time_and_comes_back(tmp_path: Path) -> None:
    with (
        Redis(directory(tmp_path, "redis")) as redis,
        balancer({"redis": (redis.address, "redis role=primary")}, check_fall=3) as lb,
    ):
        wait_for(lambda: lb.backend("redis")["checks_total"] >= 2, "checks", PATIENCE)
        redis.demote()
        began = time.monotonic()
        lb.wait_line(r"\bdown pool=redis backend=redis .*\bgot=\"slave ", PATIENCE)
        took = time.monotonic() - began
        assert took <= 3 * (INTERVAL * (1 + (3 - 1) / 2) + 0.2), f"left after {took:.2f} s"
        redis.promote()
        lb.wait_backend("redis", "up")


def test_a_postgresql_that_comes_back_as_a_standby_is_left() -> None:
    with (
        Postgres() as postgres,
        balancer({"postgres": (postgres.address, "pgsql user=check role=primary")}) as lb,
    ):
        wait_for(lambda: lb.backend("postgres")["checks_total"] >= 2, "checks", PATIENCE)
        postgres.demote()
        lb.wait_backend("postgres", "down", PATIENCE)
        wait_for(lambda: lb.backend("postgres")["check"] == "reply", "its answer", PATIENCE)


def test_a_resizer_that_accepts_and_does_not_work_is_found() -> None:
    with Resizer(cpus=1) as resizer, balancer({"resizer": (resizer.address, "frame timeout=500ms")}) as lb:
        wait_for(lambda: lb.backend("resizer")["checks_total"] >= 2, "checks", PATIENCE)
        (front,) = resizer.pids("front")
        freeze(front)  # the kernel goes on accepting
        lb.wait_line(r"\bdown .*backend=resizer .*check=timeout", PATIENCE)
        lb.wait_backend("resizer", "up", PATIENCE)  # its master has replaced the front
        resizer.expected_exit = None
        resizer.expect(" hang ")
