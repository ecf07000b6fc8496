"""`make bench`: CPU per request of ours beside every peer on this machine, all in front of the same backend.

    make bench                                        everything; long
    make bench WORK=keepalive PEERS=haproxy ROUNDS=5  one work against one peer
    make bench WORK=close PEERS=ours@/tmp/before      against the balancer of another checkout
    make bench WORK=main TOGETHER=1                   all peers at the same time, each under the same load
    make bench HAPROXY=/opt/haproxy NGINX=/opt/nginx  other programs than those on PATH

Writes bench.md, bench.json and, with matplotlib, bench.svg into bench-out/. Peers are interleaved within a round, each
round starts with another one, and every figure is a median over the rounds. Run it on an otherwise quiet machine.
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from scripts.benchlib.floor import kernel_floor, packets_of
from scripts.benchlib.peers import INSTALL, PEERS, BenchBackend, checkout_of, find, is_known, kind_of, missing
from scripts.benchlib.report import Results, as_json, draw, middle, number, table
from scripts.benchlib.works import WORKS, take_sample, take_together
from scripts.lab.choices import add_rounds
from scripts.lab.measure import machine

MAIN_WORKS = ["keepalive", "close", "100k", "100m", "idle"]


def parse() -> argparse.Namespace:
    there_are = f"works are {', '.join(WORKS)}; peers are {', '.join(PEERS)}"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=there_are)
    parser.add_argument("--work", default="", help="comma-separated; `main` for the first five; default all")
    parser.add_argument(
        "--peers",
        default="haproxy,nginx,envoy",
        help="comma-separated, beside ours and direct; ours@DIRECTORY is the balancer of another checkout",
    )
    add_rounds(parser, 5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one sample's load")
    parser.add_argument("--together", action="store_true", help="all peers at the same time, none alone")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    chosen = parser.parse_args()
    chosen.works = [
        w for part in chosen.work.split(",") if part for w in (MAIN_WORKS if part == "main" else [part])
    ]
    chosen.works = chosen.works or list(WORKS)
    unknown = [name for name in chosen.works if name not in WORKS]
    chosen.peers = [name for name in chosen.peers.split(",") if name]
    unknown += [name for name in chosen.peers if not is_known(name)]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; {there_are}")
    return chosen


def present(peers: list[str]) -> list[str]:
    """Those of `peers` that are on this machine; prints which are not, and how to install them."""
    for name in (*peers, "wrk"):
        if missing(name):
            how = INSTALL.get(name, f"a checkout in {checkout_of(name)}")
            print(f"missing: {name}; to have it: {how}")
    return [name for name in peers if not missing(name)]


def run(
    works: list[str], peers: list[str], rounds: int, seconds: float, together: bool
) -> tuple[Results, str]:
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Path(name).chmod(0o755)
        backend = BenchBackend(Path(name))
        try:
            for work in works:
                only = WORKS[work].only
                own = ("ours", "framed") if WORKS[work].frame else ("ours",)
                names = [peer for peer in (*own, *peers, "direct") if not only or kind_of(peer) in only]
                if together:
                    names.remove("direct")
                results[work] = {peer: [] for peer in names}
                for turn in range(rounds):
                    shift = turn % len(names)
                    order = [*names[shift:], *names[:shift]]
                    samples = take_together(WORKS[work], order, backend, seconds) if together else None
                    for place, peer in enumerate(order):
                        sample = (
                            samples[place] if samples else take_sample(WORKS[work], peer, backend, seconds)
                        )
                        results[work][peer].append(sample)
                        figures = f"{sample.rate:,.0f}/s p99 {sample.p99:.0f} us, CPU {number(sample.cpu)} us"
                        print(
                            f"{work} round {turn + 1}/{rounds} {peer}: {figures}", file=sys.stderr, flush=True
                        )
                medians = {peer: number(middle(samples, "cpu")) for peer, samples in results[work].items()}
                print(f"{work}: CPU us/request {medians}", file=sys.stderr, flush=True)
        finally:
            backend.close()
    return results, backend.kind


def packets(peers: list[str]) -> str:
    """The packets of a short connection through each peer, and without one."""
    counts = {peer: packets_of(peer) for peer in ("ours", *peers, "direct")}
    known = [f"{peer} {count:.1f}" for peer, count in counts.items() if count is not None]
    return ", ".join(known) or "no network namespace is allowed here"


def main() -> int:
    chosen = parse()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    peers = present(chosen.peers)
    results, backend = run(chosen.works, peers, chosen.rounds, chosen.seconds, chosen.together)
    generator = "wrk" if find("wrk") else "the built-in load generator"
    how = "rounds, all peers at the same time" if chosen.together else "interleaved rounds"
    foot = f"{machine()}; backend {backend}; load by {generator}; medians of {chosen.rounds} {how}."
    foot += f"\n\nKernel floor of a request (two sends and two receives on loopback): {kernel_floor():.1f} us of CPU."
    if "close" in chosen.works:
        foot += f"\n\nPackets of a connection with one request: {packets(peers)}."
    text = f"{table(results)}\n\n{foot}\n"
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "bench.md").write_text(text)
    facts: dict[str, object] = {
        "machine": machine(),
        "backend": backend,
        "load": generator,
        "rounds": chosen.rounds,
    }
    (chosen.out / "bench.json").write_text(as_json(results, facts))
    drawn = draw(results, machine(), chosen.out / "bench.svg")
    print(text)
    print(
        f"written: {chosen.out}/bench.md, bench.json"
        + (", bench.svg" if drawn else " (no chart: no matplotlib)")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
