"""``python -m tests.bench.counting``: what counting costs a relayed request; see README.md.

Two gateways run side by side in pure Python, one that counts and serves the admin listener, and one that does neither
(silent.py). They are measured in pairs, in random order.
"""

import argparse
import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.bench.__main__ import Run
from tests.bench.interpreter import PURE, Interpreter
from tests.bench.peers import HERE, Peer, Place, gateway
from tests.bench.workloads import Plan, Workload


def silent(place: Place) -> list[str]:
    argv = [place.python.path, str(HERE / "silent.py"), "--upstream", f"http://127.0.0.1:{place.upstream}"]
    return [*argv, "--port", str(place.port), "--admin-port", "0"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.counting", description=__doc__)
    parser.add_argument("--pairs", type=int, default=20, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of each run")
    parser.add_argument("--connections", type=int, default=64, metavar="N")
    options = parser.parse_args()
    peers = [Peer("gateway", "with counting", gateway(), env=PURE), Peer("silent", "without", silent, env=PURE)]
    workload = Workload("requests", "requests", options.connections)
    ratios: list[float] = []
    micros: dict[str, list[float]] = {peer.slug: [] for peer in peers}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, ExitStack() as stack:
        run = Run(Plan(seconds=options.seconds), peers, Path(directory), stack, Interpreter(sys.executable))
        up = {peer.slug: run.start(peer) for peer in peers}
        for slug, (process, port) in up.items():  # warm-up
            print(slug, run.bench.run(workload, port, process)["cpu_us"], file=sys.stderr)
        for _ in range(options.pairs):
            for slug in random.sample(list(up), len(up)):
                process, port = up[slug]
                micros[slug].append(run.bench.run(workload, port, process)["cpu_us"])
            ratios.append(micros["gateway"][-1] / micros["silent"][-1])
            print(f"{micros['gateway'][-1]:.1f} / {micros['silent'][-1]:.1f}", file=sys.stderr)
    low, middle, high = statistics.quantiles(ratios, n=4)
    counting, without = (statistics.median(micros[peer.slug]) for peer in peers)
    print(
        f"CPU a request, {options.connections} connections, {options.pairs} pairs: counting {counting:.1f} us, without "
        f"{without:.1f} us; ratio {middle:.3f} (quartiles {low:.3f}, {high:.3f})"
    )


if __name__ == "__main__":
    main()
