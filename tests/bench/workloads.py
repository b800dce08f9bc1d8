"""The workloads. Each is one run of the load generator, and the proxy's CPU time is read before and after it."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import Cores, Process, affinity

MIB = 1024 * 1024
CONNECTIONS = (1, 16, 64, 256)
STREAMS = 64
PACE_MS = 10
FLAT_OUT = 500  # events per stream, for each second of the plan
UPDATE_CONNECTIONS = 16
TRANSFER_BYTES = 100 * MIB

Values = dict[str, float]

CHAT = b'{"model":"gpt","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 967)
# What LiteLLM 1.83.13's dashboard sends when an internal user saves a key of type "LLM API".
UPDATE = (
    b'{"key_alias":"mine","models":["all-team-models"],"allowed_routes":["llm_api_routes"],"max_budget":null,'
    b'"budget_duration":null,"tpm_limit":null,"tpm_limit_type":null,"rpm_limit":null,"rpm_limit_type":null,'
    b'"max_parallel_requests":null,"disable_global_guardrails":false,"access_group_ids":[],"team_id":null,"metadata":{},'
    b'"duration":null,"token":"%(hash)s","disabled_callbacks":[],"auto_rotate":false,"rotation_interval":null,"key":"%(hash)s",'
    b'"object_permission":{"mcp_servers":[],"mcp_access_groups":[],"mcp_toolsets":[],"agents":[],"agent_access_groups":[]}}'
) % {b"hash": b"88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b"}


class Failed(Exception):
    """A run returned no figures; the message says why."""


def post(target: bytes, content: bytes) -> bytes:
    """A request as an OpenAI client sends it: its head and its content."""
    return (
        b"POST %s HTTP/1.1\r\nHost: bench.internal\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\n"
        b"Authorization: Bearer sk-bench-0123456789\r\nContent-Type: application/json\r\n"
        b"User-Agent: OpenAI/Python 1.99.1\r\nContent-Length: %d\r\n\r\n%s" % (target, len(content), content)
    )


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, and for each run its seconds, transfers and first bytes."""

    rounds: int = 5
    seconds: float = 2.0
    transfers: int = 3
    first_bytes: int = 300


@dataclass(frozen=True)
class Workload:
    """One column group. ``name`` is its key in the results; ``kind`` is what a peer must support."""

    name: str
    kind: str
    connections: int = 1


WORKLOADS: tuple[Workload, ...] = (
    *(Workload(f"requests@{n}", "requests", n) for n in CONNECTIONS),
    Workload("sse", "sse", STREAMS),
    Workload("sse-flat-out", "sse", STREAMS),
    Workload("first-byte", "sse"),
    Workload("download", "transfer"),
    Workload("upload", "transfer"),
    Workload("update", "update", UPDATE_CONNECTIONS),
)


@dataclass(frozen=True)
class Bench:
    """The load generator, request files, cores and plan of a measurement."""

    load: Path
    chat: Path
    update: Path
    cores: Cores
    plan: Plan

    def generate(self, mode: str, port: int, *arguments: object, during: Process | None = None) -> Values:
        """Run the load generator once and return its figures. Raises `Failed`.

        The figures include ``rss`` and ``pss`` of the process ``during``, if given, which are read before the run ends.
        """
        argv = [str(self.load), mode, str(port), *map(str, arguments)]
        with affinity({self.cores.load}):
            popen = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        more: Values = {}
        with popen:
            try:
                if during is not None:
                    time.sleep(self.plan.seconds * 0.7)
                    memory = during.memory()
                    more = {"rss": memory.rss, "pss": memory.pss}
                out, err = popen.communicate(timeout=90)
            except subprocess.TimeoutExpired:
                raise Failed(f"{mode}: no end after 90 s") from None
            finally:
                popen.kill()  # has no effect if it has ended
        if popen.returncode:
            raise Failed(f"{mode}: {err.decode().strip() or f'ended with {popen.returncode}'}")
        values: Values = json.loads(out)
        if values["failures"]:
            status = int(values.get("failure_status", 0))
            raise Failed(
                f"{mode}: {values['failures']:.0f} failures" + (f", the first with status {status}" if status else "")
            )
        return {**values, **more}

    def requests(self, port: int, connections: int, seconds: float, during: Process | None = None) -> Values:
        """Measure POSTs of 1 KB with JSON responses of 2 KB."""
        return self.generate("requests", port, connections, seconds, self.chat, 2048, during=during)

    def run(self, workload: Workload, port: int, process: Process | None) -> Values:
        """Run a workload through ``process`` (None: direct). Adds ``cpu_us``, per request or event. Raises `Failed`."""
        plan = self.plan
        before = process.cpu_ns() if process else 0
        if workload.kind == "requests":
            values = self.requests(port, workload.connections, plan.seconds)
            count = values["completed"]
        elif workload.name == "update":
            values = self.generate("requests", port, workload.connections, plan.seconds, self.update, 0)
            count = values["completed"]
        elif workload.name == "first-byte":
            values = self.generate("first-byte", port, plan.first_bytes)
            count = values["completed"]
        elif workload.kind == "sse":
            # Streams end: a relay that does not notice its client's disconnect would read an endless one for ever.
            pace = PACE_MS if workload.name == "sse" else 0
            events = int(plan.seconds * (1000 / pace if pace else FLAT_OUT))
            values = self.generate("sse", port, workload.connections, events, pace)
            count = values["events"]
        else:
            return self.transfer(workload.name, port, process)
        if process:
            values["cpu_us"] = (process.cpu_ns() - before) / 1000 / count
        return values

    def transfer(self, direction: str, port: int, process: Process | None) -> Values:
        """Transfer 100 MiB through the proxy. ``growth`` is the increase of its resident size meanwhile, in bytes."""
        if process is None:
            return self.generate(direction, port, TRANSFER_BYTES, self.plan.transfers)
        memory = process.memory()
        process.reset_peak()
        values = self.generate(direction, port, TRANSFER_BYTES, self.plan.transfers)
        return {**values, "growth": process.growth(memory)}

    def memory(self, port: int, process: Process) -> Values:
        """The resident size after the start, and while 256 connections are busy."""
        idle = process.memory()
        busy = self.requests(port, 256, self.plan.seconds, during=process)
        return {"rss": busy["rss"], "pss": busy["pss"], "rss_idle": idle.rss, "pss_idle": idle.pss}
