"""``python -m tests.bench``: measures the gateway and its peers side by side; see README.md beside this file."""

import argparse
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench.interpreter import Interpreter
from tests.bench.peers import HERE, PEERS, Missing, Peer, start
from tests.bench.plot import plot
from tests.bench.processes import Cores, Process
from tests.bench.report import Result, markdown
from tests.bench.workloads import CHAT, UPDATE, WORKLOADS, Bench, Failed, Plan, Values, post

SIBLINGS = " (threads of one physical core: they slow one another)"
QUICK = Plan(rounds=2, seconds=0.4, transfers=1, first_bytes=50)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build(name: str, directory: Path) -> Path:
    """Compile one of the C programs beside this file. Raises `SystemExit` if that fails or there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("gcc is missing: the upstream and the load generator are C programs (Debian: gcc, libc6-dev)")
    program = directory / name
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-o", str(program), str(HERE / f"{name}.c")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}.c does not compile:\n{done.stderr}")
    return program


def machine(cores: Cores, python: Interpreter) -> dict[str, Any]:
    """The machine, cores and Python on which the figures are measured."""
    build = python.build()
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    threads = Path(f"/sys/devices/system/cpu/cpu{cores.proxy}/topology/thread_siblings_list")
    siblings = threads.exists() and {str(cores.load), str(cores.upstream)} & set(
        re.split("[,-]", threads.read_text().strip())
    )
    return {
        "cpu": model[0] if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": f"{build.version}, {build.kind}",
        "configured": build.arguments,
        "date": time.strftime("%Y-%m-%d"),
        "cores": f"proxy on core {cores.proxy}, load on {cores.load}, upstream on {cores.upstream}"
        + (SIBLINGS if siblings else ""),
    }


class Run:
    """One run of the benchmark: the load generator, upstream, the peers, and the results."""

    def __init__(self, plan: Plan, peers: list[Peer], directory: Path, stack: ExitStack, python: Interpreter) -> None:
        self.plan, self.peers, self.directory, self.stack, self.python = plan, peers, directory, stack, python
        self.cores = Cores.pick()
        chat, update = directory / "chat", directory / "update"
        chat.write_bytes(post(b"/v1/chat/completions", CHAT))
        update.write_bytes(post(b"/key/update", UPDATE))
        self.bench = Bench(build("load", directory), chat, update, self.cores, plan)
        upstream = Process(
            [str(build("upstream", directory))], cpus={self.cores.upstream}, log=directory / "upstream.stderr"
        )
        stack.callback(upstream.stop)
        self.upstream = int(upstream.line())
        self.result = Result(machine(self.cores, python), vars(plan), {}, {}, {}, [], [])

    def start(self, peer: Peer, arguments: Sequence[str] = ()) -> tuple[Process, int]:
        """Start a peer, with further ``arguments`` for its interpreter. Return it and its port. Raises `Missing`."""
        process, port = start(peer, self.upstream, self.directory / peer.slug, self.cores, self.python, arguments)
        self.stack.callback(process.stop)
        return process, port

    def alone(self) -> None:
        """Run each peer alone, to see whether it works here and to measure its memory (PSS divides shared pages)."""
        for peer in self.peers:
            progress(f"memory: {peer.slug}")
            try:
                process, port = self.start(peer)
                try:
                    if "memory" in peer.kinds:
                        self.result.memory[peer.slug] = self.bench.memory(port, process)
                    version = peer.version(self.python)
                finally:
                    process.stop()
            except Missing as missing:
                self.result.missing[peer.slug] = str(missing)
                progress(f"  missing: {missing}")
            except Failed as failed:
                self.result.failed.append(f"{peer.slug}, memory: {failed}")
                progress(f"  {failed}")
            else:
                if version:
                    self.result.versions[peer.slug] = version

    def rounds(self) -> None:
        """Measure all workloads and peers in random order, once per round. The peers that are not measured are idle."""
        up: dict[str, tuple[Process | None, int]] = {"direct": (None, self.upstream)}
        for peer in self.peers:
            if peer.slug not in self.result.missing:
                try:
                    up[peer.slug] = self.start(peer)
                except Missing as missing:
                    self.result.missing[peer.slug] = str(missing)
        takes_part = {peer.slug: peer.kinds for peer in self.peers} | {
            "direct": frozenset({"requests", "sse", "transfer"})
        }
        for number in range(self.plan.rounds):
            measured: dict[str, dict[str, Values]] = {}
            for workload in random.sample(WORKLOADS, len(WORKLOADS)):
                slugs = [slug for slug in up if workload.kind in takes_part[slug]]
                progress(f"round {number + 1} of {self.plan.rounds}: {workload.name}")
                for slug in random.sample(slugs, len(slugs)):
                    process, port = up[slug]
                    try:
                        measured.setdefault(workload.name, {})[slug] = self.bench.run(workload, port, process)
                    except Failed as failed:
                        self.result.failed.append(f"{slug}, {workload.name}, round {number + 1}: {failed}")
                        progress(f"  {slug}: {failed}")
            self.result.rounds.append(measured)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Prints the figures as Markdown.")
    parser.add_argument(
        "--quick", action="store_true", help="two short rounds: does everything run; the figures are noise"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default {Plan.rounds}")
    parser.add_argument("--peers", metavar="NAMES", help="comma list out of: " + ", ".join(peer.slug for peer in PEERS))
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="runs the gateway and the Python peers; default: the one that runs this",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG there")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    if options.rounds:
        plan = Plan(**{**vars(plan), "rounds": options.rounds})
    names = options.peers.split(",") if options.peers else [peer.slug for peer in PEERS]
    if unknown := set(names) - {peer.slug for peer in PEERS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    python = shutil.which(options.python)
    if python is None:
        parser.error(f"no such program: {options.python}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the stack below still stops the peers
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, ExitStack() as stack:
        run = Run(plan, [peer for peer in PEERS if peer.slug in names], Path(directory), stack, Interpreter(python))
        progress(run.result.machine["python"])
        run.alone()
        run.rounds()
    if options.plot:
        options.plot.write_text(plot(run.result))
    print(markdown(run.result))


if __name__ == "__main__":
    main()
