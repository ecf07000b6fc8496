"""The peers: ours, haproxy, nginx, envoy, each as a TCP proxy with two workers, and "direct", no proxy at all.

RULES: every peer gets the same backends, the same policy (least connections; two random choices where a work asks for
p2c), no logging, no health checks, and otherwise its defaults, but for TLS 1.3 where TLS is ended. A program is found in
the environment variable of its name in capitals, else on PATH. Also here: the backend itself, nginx where it is found,
else one in Python.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lab.network import accepts, free_port
from scripts.lab.process import ROOT, LabProcess
from scripts.lab.waiting import wait_for

INSTALL = {
    "haproxy": "apt-get install haproxy",
    "nginx": "apt-get install nginx libnginx-mod-stream",
    "envoy": "https://www.envoyproxy.io/docs/envoy/latest/start/install, or ENVOY=/path/to/envoy",
    "wrk": "apt-get install wrk (without it the built-in load generator does all the work)",
}
STREAM_MODULES = (
    "/usr/lib/nginx/modules/ngx_stream_module.so",
    "/usr/lib64/nginx/modules/ngx_stream_module.so",
)
CONNECTIONS = 16_000
SIZES = {"100k": 100 * 1024, "100m": 100 * 1024 * 1024}  # bytes of the backend's files


def find(name: str) -> str | None:
    return os.environ.get(name.upper()) or shutil.which(name)


@dataclass(frozen=True)
class Scene:
    """The task of a proxy: listen on `port`, spread over `backends`, with `workers` processes or threads."""

    port: int
    backends: Sequence[tuple[str, int]]
    workers: int
    p2c: bool
    directory: Path
    pem: Path | None = None  # certificate and key: the proxy ends TLS


def ours(scene: Scene) -> list[str]:
    upstreams = [f"--upstream={host}:{port}" for host, port in scene.backends]
    options = [
        f"--port={scene.port}",
        "--bind=127.0.0.1",
        f"--workers={scene.workers}",
        "--check=none",
        *upstreams,
    ]
    options += [f"--balance={'p2c' if scene.p2c else 'leastconn'}", f"--admin={scene.directory}/admin"]
    options += [f"--tls-cert={scene.pem}"] if scene.pem else []
    return [sys.executable, "-m", "balancer", *options]


def framed(scene: Scene) -> list[str]:
    return [*ours(scene), "--mode=framed", "--frame=gowork", "--order=any"]


def checkout_of(name: str) -> Path:
    """Directory whose balancer a peer called `ours` or `ours@DIRECTORY` runs; the same interpreter runs both."""
    directory = name.partition("@")[2]
    return Path(directory).resolve() if directory else ROOT


def haproxy(scene: Scene) -> list[str]:
    servers = "\n".join(f"  server s{n} {host}:{port}" for n, (host, port) in enumerate(scene.backends))
    text = f"""global
  nbthread {scene.workers}
  maxconn {CONNECTIONS // 2}
defaults
  mode tcp
  timeout connect 5s
  timeout client 10m
  timeout server 10m
listen bench
  bind 127.0.0.1:{scene.port}{f" ssl crt {scene.pem}" if scene.pem else ""}
  balance {"random(2)" if scene.p2c else "leastconn"}
{servers}
"""
    config = scene.directory / "haproxy.cfg"
    config.write_text(text)
    return [find("haproxy") or "", "-db", "-q", "-f", str(config)]


def nginx(scene: Scene) -> list[str]:
    servers = "\n".join(f"    server {host}:{port};" for host, port in scene.backends)
    tls = (
        f"ssl_certificate {scene.pem}; ssl_certificate_key {scene.pem}; ssl_protocols TLSv1.2 TLSv1.3;"
        if scene.pem
        else ""
    )
    text = f"""stream {{
  upstream bench {{
    {"random two least_conn" if scene.p2c else "least_conn"};
{servers}
  }}
  server {{
    listen 127.0.0.1:{scene.port} {"ssl" if tls else ""} reuseport backlog=4096;
    {tls}
    proxy_pass bench;
    proxy_connect_timeout 5s;
  }}
}}
"""
    return nginx_command(scene.directory, "proxy", scene.workers, text)


def has_stream_built_in(program: str) -> bool:
    """Whether this nginx needs no module for TCP."""
    shown = subprocess.run([program, "-V"], capture_output=True, text=True).stderr
    return "--with-stream " in shown + " "


def nginx_command(directory: Path, name: str, workers: int, body: str) -> list[str]:
    needs_module = "stream" in body and not has_stream_built_in(find("nginx") or "")
    modules = [
        f"load_module {module};" for module in STREAM_MODULES if needs_module and Path(module).exists()
    ]
    user = "user root;" if os.geteuid() == 0 else ""  # its temporary directory is ours alone
    head = f"""{" ".join(modules)}
{user}
daemon off;
pid {directory}/{name}.pid;
error_log stderr crit;
worker_processes {workers};
worker_rlimit_nofile {CONNECTIONS + 1000};
events {{ worker_connections {CONNECTIONS}; }}
"""
    config = directory / f"nginx-{name}.conf"
    config.write_text(head + body)
    return [find("nginx") or "", "-e", "stderr", "-p", str(directory), "-c", str(config)]


def envoy(scene: Scene) -> list[str]:
    def address(host: str, port: int) -> dict[str, object]:
        return {"address": {"socket_address": {"address": host, "port_value": port}}}

    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    proxy = {"@type": kind, "stat_prefix": "bench", "cluster": "bench"}
    chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    limits = {
        "max_connections": CONNECTIONS,
        "max_pending_requests": CONNECTIONS,
        "max_requests": CONNECTIONS,
    }
    cluster = {
        "name": "bench",
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {
            "cluster_name": "bench",
            "endpoints": [{"lb_endpoints": [{"endpoint": address(*backend)} for backend in scene.backends]}],
        },
    }
    listener = {"name": "bench", **address("127.0.0.1", scene.port), "filter_chains": [chain]}
    config = scene.directory / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    quiet = ["--log-level", "error", "--disable-hot-restart", "--concurrency", str(scene.workers)]
    return [find("envoy") or "", "-c", str(config), *quiet]


PEERS: dict[str, Callable[[Scene], list[str]]] = {
    "ours": ours,
    "framed": framed,
    "haproxy": haproxy,
    "nginx": nginx,
    "envoy": envoy,
}


def kind_of(name: str) -> str:
    """Key of PEERS for a peer's name: `ours@DIRECTORY` is `ours` of another checkout."""
    return name.partition("@")[0]


def is_known(name: str) -> bool:
    kind, at, directory = name.partition("@")
    return kind in PEERS and (not at or (kind == "ours" and bool(directory)))


def missing(name: str) -> bool:
    if kind_of(name) in ("ours", "framed"):
        return not (checkout_of(name) / "balancer/__main__.py").is_file()
    if name == "direct":
        return False
    if name == "nginx" and find(name):
        built_in = has_stream_built_in(find(name) or "")
        return not built_in and not any(Path(module).exists() for module in STREAM_MODULES)
    return not find(name)


def make_certificate(directory: Path, key: str = "ec") -> Path:
    """A PEM file with a P-256 key, or one of 2,048 bits with "rsa", and a certificate of its own signature."""
    private, pem = directory / "bench.key", directory / "bench.pem"
    kind = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"] if key == "ec" else ["rsa:2048"]
    command = [find("openssl") or "openssl", "req", "-x509", "-nodes", "-batch", "-days", "2"]
    command += ["-subj", "/CN=bench", "-newkey", *kind, "-keyout", str(private), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    pem.write_text(pem.read_text() + private.read_text())
    return pem


def start(command: list[str], log: Path, port: int, cwd: Path = ROOT) -> LabProcess:
    """A program that listens on `port`."""
    process = LabProcess(command, log, cwd=cwd).start()
    try:
        wait_for(lambda: process.has_ended or accepts(("127.0.0.1", port)), f"port {port}", 15.0)
        assert not process.has_ended, "it has ended"
    except AssertionError as error:
        process.kill_everything()
        raise SystemExit(f"{command[0]} did not start ({error}):\n{process.log()[-2000:]}") from None
    return process


class Proxy:
    """A running peer; `pid` is the root of its process tree, None for "direct"."""

    def __init__(self, name: str, scene: Scene) -> None:
        self.process: LabProcess | None = None
        self.port = scene.backends[0][1]
        if name != "direct":
            self.port = scene.port
            command = PEERS[kind_of(name)](scene)
            self.process = start(command, scene.directory / "proxy.log", scene.port, checkout_of(name))

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.kill_everything()


class BenchBackend:
    """The backend of all peers: `/` 5 bytes, `/100k`, `/100m`, on every address of 127.0.0.0/8."""

    def __init__(self, directory: Path) -> None:
        files = directory / "files"
        files.mkdir()
        for name, size in SIZES.items():
            with open(files / name, "wb") as file:
                file.write(os.urandom(1 << 16) * (size >> 16) + bytes(size & 0xFFFF))
        self.port = free_port()
        self.kind = "nginx" if find("nginx") else "python"
        if self.kind == "nginx":
            command = nginx_command(directory, "backend", 2, self.http(files))
        else:
            command = [sys.executable, "-m", "scripts.benchlib.backend", str(self.port), str(files)]
        self.process = start(command, directory / "backend.log", self.port)
        self.framed_port = free_port()
        command = [sys.executable, "-m", "scripts.benchlib.framed_backend", str(self.framed_port)]
        self.framed = start(command, directory / "framed.log", self.framed_port)

    def http(self, files: Path) -> str:
        return f"""http {{
  access_log off;
  sendfile on;
  tcp_nodelay on;
  keepalive_requests 100000000;
  keepalive_timeout 1h;
  server {{
    listen 0.0.0.0:{self.port} reuseport backlog=4096;
    root {files};
    location = / {{ return 200 "hello"; }}
  }}
}}
"""

    def addresses(self, count: int, framed: bool = False) -> list[tuple[str, int]]:
        port = self.framed_port if framed else self.port
        return [(f"127.0.{n // 250}.{n % 250 + 1}", port) for n in range(count)]

    def close(self) -> None:
        self.process.kill_everything()
        self.framed.kill_everything()
