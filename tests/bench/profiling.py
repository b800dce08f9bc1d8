"""``python -m tests.bench.profiling``: runs a profiler on a peer under steady load; see README.md."""

import argparse
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from tests.bench.__main__ import Run
from tests.bench.interpreter import Interpreter
from tests.bench.peers import PEERS
from tests.bench.workloads import WORKLOADS, Failed, Plan, Workload


def keep_busy(run: Run, workload: Workload, port: int, stop: threading.Event) -> None:
    """Repeat a workload without pause until ``stop`` is set."""
    while not stop.is_set():
        try:
            run.bench.run(workload, port, None)
        except Failed as failed:
            print(failed, file=sys.stderr)
            return


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profiling", description=__doc__)
    parser.add_argument("workload", choices=[workload.name for workload in WORKLOADS])
    parser.add_argument("--peer", default="gateway", choices=[peer.slug for peer in PEERS])
    parser.add_argument("--cprofile", type=Path, metavar="FILE", help="run the (Python) peer under cProfile for 10 s")
    parser.add_argument("command", nargs="*", help="after --: the profiler, {pid} in it is the peer's; ends by itself")
    options = parser.parse_intermixed_args()  # the command may follow other options
    workload = next(workload for workload in WORKLOADS if workload.name == options.workload)
    peer = next(peer for peer in PEERS if peer.slug == options.peer)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, ExitStack() as stack:
        run = Run(Plan(seconds=1), [peer], Path(directory), stack, Interpreter(sys.executable))
        arguments = ["-m", "cProfile", "-o", str(options.cprofile.absolute())] if options.cprofile else []
        process, port = run.start(peer, arguments)
        stop = threading.Event()
        load = threading.Thread(target=keep_busy, args=(run, workload, port, stop))
        load.start()
        try:
            print(f"process {process.pid}, port {port}, {workload.name}", file=sys.stderr)
            command = [word.replace("{pid}", str(process.pid)) for word in options.command] or ["sleep", "10"]
            status = subprocess.run(command, check=False).returncode
        finally:
            stop.set()
            load.join()
        if arguments:  # the profile is written when the process ends
            process.stop(patience=30)
    sys.exit(status)


if __name__ == "__main__":
    main()
