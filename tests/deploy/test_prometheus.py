"""deploy/grafana in a real Prometheus that scrapes real gateways, and the alert rules under `promtool test rules`.

The configuration is the one in deploy/grafana/README.md, with the test's own targets. Two things are faster:
Prometheus scrapes and evaluates every second instead of every 15 s, and a minute in the `for` of an alert is a
second. promtool tests the rules unchanged.
"""

import contextlib
import json
import math
import re
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from tests.deploy.programs import DEPLOY, program
from tests.deploy.proxies import running
from tests.operate.exchanges import (
    BUDGET,
    CUT,
    HANDSHAKE,
    SPEND,
    SWITCH,
    answer,
    lookup,
    refusing,
    request,
    stored,
    update,
)
from tests.operate.exposition import wait_for, wait_until_ready
from tests.support.gateway import Gateway, free_port
from tests.support.upstream import CLOSE, OK, WAIT_CLOSED, Connection, Script, Upstream, reply

T = TypeVar("T")

ALERTS = DEPLOY / "grafana/alerts.yaml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
UNIT_TESTS = sorted(Path(__file__).parent.glob("alerts_*.yaml"))
WAIT = 60.0
"""Seconds within which each awaited event must occur. Most take two or three."""
SCRAPE_INTERVAL = "15s"
"""The scrape interval that Grafana assumes for a data source by default."""


def promtool(*arguments: str, directory: Path) -> None:
    command = [program("promtool", "Debian: prometheus"), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def shown_configuration() -> dict[str, Any]:
    """The configuration that README.md shows."""
    found = re.search(r"```yaml\n(.*?)```", (DEPLOY / "grafana/README.md").read_text(), re.DOTALL)
    assert found
    configuration: dict[str, Any] = yaml.safe_load(found[1])
    return configuration


def test_what_the_readme_shows_is_a_configuration(tmp_path: Path) -> None:
    """promtool accepts the configuration in README.md, and the rules with their templates, without a warning."""
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(shown_configuration()))
    (tmp_path / "alerts.yaml").write_text(ALERTS.read_text())
    promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml", directory=tmp_path)


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda path: path.stem)
def test_when_alerts_fire(file: Path, tmp_path: Path) -> None:
    """Each alert starts and stops firing at the expected minutes, with the expected summary."""
    tests = yaml.safe_load(file.read_text())
    tests["rule_files"] = [str(ALERTS)]
    for test in tests["tests"]:
        for check in test["alert_rule_test"]:
            for alert in check["exp_alerts"]:
                alert["exp_annotations"]["description"] = RULES[check["alertname"]]["annotations"]["description"]
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", "tests.yaml", directory=tmp_path)


def test_every_alert_is_tested() -> None:
    """For each alert there is a test in which it does not fire, then fires, and then stops firing."""
    for name in RULES:
        courses = []
        for test in (test for file in UNIT_TESTS for test in yaml.safe_load(file.read_text())["tests"]):
            checks = [check for check in test["alert_rule_test"] if check["alertname"] == name]
            checks.sort(key=lambda check: int(re.sub(r"[mh]$", "", check["eval_time"])))
            courses.append("".join("+" if check["exp_alerts"] else "-" for check in checks))
        assert any(re.search(r"-\++-", course) for course in courses), name


class Prometheus:
    """A Prometheus that runs at ``url``."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=WAIT)

    def is_ready(self) -> bool:
        """Whether it is ready. It accepts connections a little earlier, and answers 503 until it is ready."""
        return self._client.get("/-/ready").status_code == 200

    def get(self, path: str, **parameters: str | float) -> Any:
        response = self._client.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that the value of ``expression`` consists of now, a vector or a matrix."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing."""
        found: list[dict[str, Any]] = self.get("alerts")["alerts"]
        return found

    def firing(self, name: str) -> list[dict[str, Any]]:
        return [alert for alert in self.alerts() if (alert["labels"]["alertname"], alert["state"]) == (name, "firing")]

    def wait_for(self, condition: Callable[[], T]) -> T:
        """Call ``condition`` until its value is true. Returns that value."""
        until = time.monotonic() + WAIT
        while not (found := condition()):
            assert time.monotonic() < until, self.get("targets")["activeTargets"] + self.alerts()
            time.sleep(0.1)
        return found

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def prometheus(directory: Path, *gateways: Gateway) -> Iterator[Prometheus]:
    """Run a Prometheus with the rules. Yields it once it has scraped each of the gateways."""
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        minutes = int(rule["for"][:-1]) * {"m": 1, "h": 60}[rule["for"][-1]]
        rule["for"] = f"{minutes}s"
    (directory / "alerts.yaml").write_text(yaml.safe_dump(rules))
    configuration = shown_configuration()
    (job,) = configuration["scrape_configs"]
    assert job["scrape_interval"] == SCRAPE_INTERVAL
    job["scrape_interval"] = "1s"
    job["static_configs"] = [{"targets": [instance(gateway) for gateway in gateways]}]
    configuration["global"] = {"evaluation_interval": "1s"}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    command = [
        program("prometheus", "Debian: prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (
        running(command, directory, port),
        contextlib.closing(Prometheus(f"http://127.0.0.1:{port}")) as found,
    ):
        found.wait_for(found.is_ready)
        scraped = f"count(count by (instance) (sanitizer_decisions_total)) == {len(gateways)}"
        found.wait_for(lambda: found.query(scraped))
        yield found


def instance(gateway: Gateway) -> str:
    host, port = gateway.admin
    return f"{host}:{port}"


# --- the dashboard


REQUESTS: dict[str, tuple[bytes, Script]] = {
    "relayed": (request(), reply(OK)),
    "a redirect": (request("PUT"), reply(answer("307 Temporary Redirect"))),
    "refused by LiteLLM": (request("DELETE"), reply(answer("401 No"))),
    "failed by LiteLLM": (request("PATCH"), reply(answer("500 Oh"))),
    "upstream closes": (request("POST"), reply(CLOSE)),
    "upstream does not answer": (request("POST"), reply(WAIT_CLOSED)),
    "dropped, or observed": (update(), lookup(stored(["/a"]))),
    "changed": (update(), lookup(stored(["/b"]), then=answer("403 No"))),
    "absent": (update(b'{"key":"sk-1"}'), reply(OK)),
    "unreadable": (update(b"{"), reply(OK)),
    "unknown": (update(), lookup(answer("403 Forbidden"))),
    "a lookup failed by LiteLLM": (update(), lookup(answer("500 Oh"))),
    "a lookup unanswered": (update(), lookup(WAIT_CLOSED)),
    "sent again": (SPEND, refusing("403 No", BUDGET, {"spend": 1.5}, b"spend")),
    "a client that stalls": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", reply(OK)),
}
NOT_MADE = {"Out of file descriptors A", "Upstream errors and stalled clients C"}
"""Queries whose counters stay 0 in this test."""
HELD = "sum(sum_over_time(sanitizer_tunnels_in_flight[1m])) >= 3 and sum(sanitizer_requests_in_flight) == 1"
"""True once a tunnel was open at three scrapes. A query with four points per second is then sure to show it."""


def make_traffic(prometheus: Prometheus, upstream: Upstream, gateway: Gateway, observing: Gateway) -> None:
    """Send every request to both gateways. Then hold a tunnel and half a response until Prometheus has seen both."""
    for message, script in REQUESTS.values():
        upstream.script = script
        for each in (gateway, observing):
            each.ask(message)
    go = threading.Event()

    def hold(connection: Connection) -> None:
        if connection.read_request().target == b"/ws":
            connection.send(SWITCH)
            connection.closed()
        else:
            connection.send(CUT)
            assert go.wait(WAIT)
            connection.send(b" whole")

    upstream.script = hold
    with gateway.connect() as tunnel, gateway.connect() as waiting:
        tunnel.send(HANDSHAKE)
        assert tunnel.read_head().status == 101
        waiting.send(request())
        prometheus.wait_for(lambda: prometheus.query(HELD))
        go.set()
        assert waiting.read_response().status == 200
    for each in (gateway, observing):
        numbers = wait_for(each, lambda n: n["sanitizer_requests_in_flight"] == n["sanitizer_tunnels_in_flight"] == 0)
        ended = sum(number for name, number in numbers.items() if name.startswith("sanitizer_requests_total"))
        total = f'sum(sanitizer_requests_total{{instance="{instance(each)}"}}) == {ended}'
        prometheus.wait_for(lambda total=total: prometheus.query(total))  # type: ignore[misc]


def filled_in(prometheus: Prometheus) -> Callable[[str], str]:
    """Returns a function that fills in a query's variables as Grafana does if everything is selected.

    A variable's values are those of the label that its own query names. Each is escaped for a regular expression in a
    PromQL string, and several are joined by `|`. `$__rate_interval` is four times the scrape interval.
    """
    variables = {"__rate_interval": "4s"}

    def fill(text: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: variables[match[1]], text)

    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert asked
            values = prometheus.get(f"label/{asked[2]}/values", **{"match[]": fill(asked[1])})
            assert values
            escaped = [re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", value) for value in values]
            variables[variable["name"]] = escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
    return fill


def test_every_panel_shows_something(tmp_path: Path) -> None:
    """After traffic of all sorts, each query returns numbers, and not only zeros. The labels in its legend have values.

    The queries in `NOT_MADE` return only zeros.
    """
    options = ("--stall-timeout", "1", "--response-timeout", "5", "--lookup-timeout", "2")
    with (
        Upstream() as upstream,
        Gateway(upstream.url, *options, admin=True) as gateway,
        Gateway(upstream.url, *options, "--mode", "observe", admin=True) as observing,
        prometheus(tmp_path, gateway, observing) as found,
    ):
        start = time.time()
        make_traffic(found, upstream, gateway, observing)
        upstream.errors.clear()
        fill = filled_in(found)
        for panel in DASHBOARD["panels"]:
            for target in panel["targets"]:
                where = f"{panel['title']} {target['refId']}"
                query = fill(target["expr"])
                span = {"start": start, "end": time.time() + 1, "step": 0.25}
                series = found.get("query_range", query=query, **span)["result"]
                numbers = [float(number) for each in series for _, number in each["values"]]
                finite = [number for number in numbers if math.isfinite(number)]
                assert finite, f"{where} has no data: {query}"
                assert any(finite) == (where not in NOT_MADE), f"{where}: {query}"
                for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                    assert all(each["metric"][label] for each in series), where
        decided = f'sum by (outcome) (sanitizer_decisions_total{{job=~"{fill("$job")}"}}) > 0'
        assert {each["metric"]["outcome"] for each in found.query(decided)} == {
            *("absent", "changed", "dropped", "observed", "unknown", "unreadable")
        }


# --- alerts


def course(prometheus: Prometheus, name: str) -> dict[str, list[float]]:
    """The times of the evaluations at which the alert was pending, and of those at which it was firing.

    The keys are these two states. The values are in seconds since the epoch.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for each in prometheus.query(f'ALERTS{{alertname="{name}"}}[1h]'):
        found[each["metric"]["alertstate"]] += [at for at, _ in each["values"]]
    return found


def test_not_ready(tmp_path: Path) -> None:
    """When LiteLLM stops, the alert is pending and then fires. When LiteLLM is back, the alert is resolved."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(contextlib.ExitStack())
        upstream.enter_context(Upstream(port=port))
        gateway = stack.enter_context(Gateway(f"http://127.0.0.1:{port}", admin=True))
        wait_until_ready(gateway)
        found = stack.enter_context(prometheus(tmp_path, gateway))
        found.wait_for(lambda: found.query("sanitizer_ready == 1") and not found.alerts())

        stopped = time.time()
        upstream.close()
        (alert,) = found.wait_for(lambda: found.firing("SanitizerNotReady"))
        assert alert["labels"]["severity"] == "critical"
        assert alert["annotations"]["summary"] == f"{instance(gateway)} is not ready"

        started = time.time()
        upstream.enter_context(Upstream(port=port))
        found.wait_for(lambda: found.query("sanitizer_ready == 1") and not found.alerts())
        resolved = time.time()
        at = course(found, "SanitizerNotReady")
        assert stopped < min(at["pending"]) < min(at["firing"]) < resolved
        print(
            f"LiteLLM stopped at 0 s, pending at {min(at['pending']) - stopped:.1f}, firing at "
            f"{min(at['firing']) - stopped:.1f}, LiteLLM started at {started - stopped:.1f}, last firing at "
            f"{max(at['firing']) - stopped:.1f}, resolved by {resolved - stopped:.1f}"
        )


def test_one_of_two_is_down_and_then_both(tmp_path: Path) -> None:
    """While one of two gateways is down, SanitizerDown names it. While both are down, only SanitizerAbsent fires."""
    with (
        Upstream() as upstream,
        Gateway(upstream.url, admin=True) as first,
        Gateway(upstream.url, admin=True) as second,
        prometheus(tmp_path, first, second) as found,
    ):
        first.stop()
        (alert,) = found.wait_for(lambda: found.firing("SanitizerDown"))
        assert alert["labels"]["instance"] == instance(first)
        second.stop()
        found.wait_for(lambda: found.firing("SanitizerAbsent") and not found.firing("SanitizerDown"))
