"""The balancer's options: typed values, the original's spellings, and the checks that go across options."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from balancer import __version__, options
from balancer.config.cpus import available_cores
from balancer.config.option import CommandLineAnswer, ConfigError
from balancer.config.units import parse_address
from balancer.options import OPTIONS, Listener, Options, Pool, ProcessOptions, Route, admin_path, parse
from balancer.pool.backend import parse_upstream

NEEDED = ["-u", "127.0.0.1:9000"]


def refusal(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(argv, environ or {})
    return str(refused.value)


def read_flat(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[Listener, Pool]:
    read = parse(argv, environ or {})
    [listener], [pool] = read.listeners, read.pools
    assert (listener.name, pool.name, listener.routes) == ("main", "main", (Route("main"),))
    return listener, pool


def test_defaults_are_those_of_the_records() -> None:
    read = parse(NEEDED, {})
    assert read == Options(
        ProcessOptions(workers=available_cores(), admin=read.process.admin),
        (Listener("main", (parse_address("0.0.0.0:9090"),), routes=(Route("main"),)),),
        (Pool("main", (parse_upstream("127.0.0.1:9000"),)),),
    )


def test_every_option_has_its_field_and_every_field_its_option() -> None:
    asked = {"check_config", "print_config", "version", "help"}
    fields = {f.name for record in (ProcessOptions, Listener, Pool) for f in dataclasses.fields(record)}
    made = {"name", "index", "addresses", "routes", "backends"}
    assert {option.field for option in OPTIONS} - asked == fields - made | {"port", "bind", "upstream"}


def test_the_original_programs_command_line() -> None:
    words = "-port 8080 -u 10.0.0.1:9000 -u 10.0.0.2:9000 -maxconns=5 -loglevel=1 -debug=false"
    listener, pool = read_flat(words.split())
    assert ([str(a) for a in listener.addresses], listener.maxconns) == (["0.0.0.0:8080"], 5)
    assert [backend.name for backend in pool.backends] == ["10.0.0.1:9000", "10.0.0.2:9000"]
    process = parse(words.split(), {}).process
    assert (process.loglevel, process.debug) == (1, False)


def test_upstreams_are_backends() -> None:
    environ = {"BALANCER_UPSTREAM": "[::1]:80 weight=2 maxconn=8 name=a, unix:/run/b backup"}
    (one, two) = read_flat([], environ)[1].backends
    assert (one.name, one.weight, one.maxconn, one.backup) == ("a", 2, 8, False)
    assert (two.name, two.address.family, two.backup) == ("unix:/run/b", "unix", True)


def test_binds_take_the_port_they_lack() -> None:
    argv = "-p 80 --bind 10.0.0.9 --bind [::1] --bind *:81 --bind=unix:/run/x"
    addresses = [str(address) for address in read_flat([*NEEDED, *argv.split()])[0].addresses]
    assert addresses == ["10.0.0.9:80", "[::1]:80", "0.0.0.0:81", "unix:/run/x"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            [],
            "no upstream: name a backend with -u host:port, key upstream in [balancer], or BALANCER_UPSTREAM",
        ),
        (["-u", "a:1", "-u", "a:1"], "--upstream: two backends are called a:1; give one of them name=X"),
        (
            ["-u", "a:1 name=x", "-u", "b:2 name=x"],
            "--upstream: two backends are called x; give one of them name=X",
        ),
        (["-u", "a:1 wieght=2"], "--upstream: upstream 'a:1 wieght=2': 'wieght=2' is not understood"),
        (["-u", "a"], "--upstream: upstream 'a': 'a' has no port"),
        (
            ["-u", "localhost:9090"],
            "--upstream: localhost:9090 is where the balancer itself listens (0.0.0.0:9090)",
        ),
        (
            ["-u", "10.0.0.1:9", "--bind", "10.0.0.1:9"],
            "--upstream: 10.0.0.1:9 is where the balancer itself listens",
        ),
        ([*NEEDED, "--check-rise", "0"], "--check-rise: '0' is below 1, the lowest that makes sense"),
        ([*NEEDED, "--check-fall", "0"], "--check-fall: '0' is below 1, the lowest that makes sense"),
        ([*NEEDED, "-p", "65536"], "--port: '65536' is not a port"),
        ([*NEEDED, "--workers", "0"], "--workers: '0' is neither auto nor a number from 1 to 128"),
        ([*NEEDED, "--workers", "257"], "--workers: '257' is neither"),  # the table of slots has 256 rows
        ([*NEEDED, "--connect-timeout", "0"], "--connect-timeout: '0' would mean no time at all"),
        ([*NEEDED, "--check-interval", "0s"], "--check-interval: '0s' would mean no time at all"),
        ([*NEEDED, "--retries", "-1"], "--retries: '-1' is below 0, the lowest that makes sense"),
        (
            [*NEEDED, "--balance", "leastconns"],
            "--balance: 'leastconns' is not one of leastconn, roundrobin, random",
        ),
        ([*NEEDED, "--loglevel", "3"], "--loglevel: '3' is not one of 0, 1, 2"),
        ([*NEEDED, "--bind", "[::1"], "--bind: '[::1' is not an address"),
        ([*NEEDED, "--bind", "::1", "--bind", "[::1]:9090"], "--bind: [::1]:9090 is given twice"),
        (
            [*NEEDED, "--user", "nobody-of-that-name"],
            "--user: user 'nobody-of-that-name' does not exist here",
        ),
        (
            [*NEEDED, "--group", "nobody-of-that-name"],
            "--group: group 'nobody-of-that-name' does not exist here",
        ),
        (
            [*NEEDED, "--debug", "--debug-dir", "/absent"],
            "--debug-dir: /absent is not a directory this process may write to",
        ),
    ],
)
def test_refusals_name_the_culprit(argv: list[str], words: str) -> None:
    assert refusal(argv).startswith(words)


def test_refusals_name_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "b.ini"
    path.write_text("[balancer]\n\nupstream =\n  a:1\n  b:2 name=a:1\n")
    assert (
        refusal(["-c", str(path)])
        == f"{path}:3: upstream: two backends are called a:1; give one of them name=X"
    )


def test_a_balancer_may_serve_one_on_the_same_port_elsewhere() -> None:
    assert parse(["-u", "10.0.0.7:9090", "-p", "9090"], {}).pools
    assert parse(["-u", "127.0.0.1:9090", "-p", "9090", "--bind", "10.0.0.1"], {}).pools


def test_questions() -> None:
    for argv, text in (
        (["--version"], f"balancer {__version__}"),
        (["--help"], "--idle-timeout TIME"),
        ([*NEEDED, "--check-config"], "configuration OK"),
        ([*NEEDED, "--print-config"], "upstream = 127.0.0.1:9000 "),
    ):
        with pytest.raises(CommandLineAnswer) as answer:
            parse(argv, {})
        assert text in str(answer.value)
    assert refusal(["--check-config"]).startswith("no upstream")


def test_help_tells_unit_default_and_variable_of_each_option() -> None:
    text = " ".join(options.help_text().split())
    for option in OPTIONS:
        assert f"--{option.name}" in text or f"--[no-]{option.name}" in text
        if not option.command_line_only:
            assert f"{option.environment('balancer')}]" in text
            assert (
                not option.default or f"default {option.default}; {option.environment('balancer')}]" in text
            )
    assert (
        options.EXAMPLE.split() == text[text.index("balancer -p") :].split()[: len(options.EXAMPLE.split())]
    )


def test_the_admin_socket_has_a_place_derived_from_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert (
        parse(NEEDED, environ).process.admin
        == f"{tmp_path}/prefork-balancer-9090.sock"
        == admin_path(9090, environ)
    )
    assert parse([*NEEDED, "--admin", "/x"], environ).process.admin == "/x"
    assert admin_path(80, {"XDG_RUNTIME_DIR": "/absent"}).endswith("/prefork-balancer-1000-80.sock")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert admin_path(80, environ) == "/run/prefork-balancer-80.sock"


def test_a_master_that_has_become_another_user_keeps_its_admin_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = [*NEEDED, "--user", "nobody"]
    monkeypatch.setattr("os.geteuid", lambda: 0)
    before = parse(argv, {}).process.admin
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    assert parse(argv, {}).process.admin == before


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


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9091", "127.0.0.1:9091"),
        ("localhost:0", "127.0.0.1:0"),
        ("[::1]:1", "[::1]:1"),
        ("unix:/run/m", "unix:/run/m"),
    ],
)
def test_a_metrics_window_that_only_this_machine_sees(text: str, address: str) -> None:
    read = parse([*NEEDED, "--metrics", text], {})
    assert (str(read.process.metrics), read.notes) == (address, ())


@pytest.mark.parametrize("text", ["0.0.0.0:9091", "*:9091", "[::]:9091", "10.0.0.1:9091"])
def test_a_metrics_window_that_others_see_is_warned_of(text: str) -> None:
    [note] = parse([*NEEDED, "--metrics", text], {}).notes
    assert "password" in note and "9091" in note


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1", "has no port"),
        ("metrics.example:9091", "is a name"),
        ("0.0.0.0:9090", "where clients are served"),
    ],
)
def test_a_metrics_address_that_cannot_be(text: str, reason: str) -> None:
    sentence = refusal([*NEEDED, "--metrics", text])
    assert sentence.startswith("--metrics") and reason in sentence


def test_listening_on_a_name() -> None:
    assert [str(a) for a in read_flat([*NEEDED, "--bind", "localhost"])[0].addresses] == ["127.0.0.1:9090"]
    assert "is a name: write the numeric address" in refusal([*NEEDED, "--bind", "example.org:80"])
