"""The values files of deploy/helm, rendered by Helm with stand-ins for LiteLLM's charts: see charts/README.md.

The helpers find out how Kubernetes would use the result: the port of a pod that a Service's `targetPort` names,
the container that listens on it, and the Ingress path that a request takes.
"""

import functools
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sanitizer.settings import Settings, load, unknown_variables
from tests.deploy.programs import DEPLOY, KUBERNETES, ROOT, VERSIONS

CHARTS = Path(__file__).parent / "charts"
HOST = "llm.example.com"
GATEWAY, ADMIN = "litellm-sanitizer", "the gateway's admin listener"
RELEASES = ["litellm", "prod"]

Object = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A values file, and the values that the operator of the chart has already set."""

    file: str
    chart: str
    operator: str
    """The operator's own values file."""
    routes: dict[str, str]
    """Paths, and the container that a request for each must reach."""
    admitted: dict[str, list[str]]
    """The listeners that the network policy lets other pods reach, and from where."""

    def __str__(self) -> str:
        return self.file


CASES = [
    Case(
        "litellm-helm.yaml",
        "litellm-helm",
        f"""
        ingress: {{enabled: true, hosts: [{{host: {HOST}, paths: [{{path: /, pathType: Prefix}}]}}]}}
        metricsServer: {{enabled: true}}
        """,
        dict.fromkeys(["/key/update", "/v1/chat/completions", "/ui/"], GATEWAY),
        {GATEWAY: ["anywhere"], ADMIN: ["monitoring"], "metrics": ["monitoring"]},
    ),
    Case(
        "litellm-monolith.yaml",
        "litellm",
        f"ingress: {{enabled: true, host: {HOST}}}",
        dict.fromkeys(["/key/update", "/v1/chat/completions", "/ui/"], GATEWAY),
        {GATEWAY: ["anywhere"], ADMIN: ["monitoring"]},
    ),
    Case(
        "litellm.yaml",
        "litellm",
        f"""
        ingress: {{enabled: true, className: nginx, host: {HOST}}}
        gateway: {{metricsServer: {{enabled: true}}}}
        """,
        {
            "/key/update": GATEWAY,
            "/key/sk-1234/regenerate": GATEWAY,
            "/keys": "backend",
            "/user/info": "backend",
            "/v1/chat/completions": "gateway",
            "/": "ui",
        },
        {GATEWAY: ["anywhere"], "backend": ["ingress-nginx", "the release"], ADMIN: ["monitoring"]},
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_release = pytest.mark.parametrize("release", RELEASES)


def values(case: Case) -> Object:
    found: Object = yaml.safe_load((DEPLOY / "helm" / case.file).read_text())
    return found


@functools.cache
def rendered(chart: str, release: str, operator: str, *files: str) -> tuple[Object, ...]:
    if importlib.util.find_spec("helm_python") is None:
        pytest.skip("Helm is not installed (PyPI: helm-python-sdk, for Linux on x86-64)")
    command = [sys.executable, "-m", "tests.deploy.helm", str(CHARTS / chart), release, "/dev/stdin"]
    made = subprocess.run(
        [*command, *(str(DEPLOY / "helm" / file) for file in files)],
        input=operator,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    return tuple(each for text in json.loads(made.stdout).values() for each in yaml.safe_load_all(text) if each)


def objects(case: Case, release: str) -> tuple[Object, ...]:
    return rendered(case.chart, release, case.operator, case.file)


def of_kind(found: tuple[Object, ...], kind: str) -> list[Object]:
    return [each for each in found if each["kind"] == kind]


def selected(selector: Object, templates: list[Object]) -> list[Object]:
    return [each for each in templates if selector.items() <= each["metadata"]["labels"].items()]


def templates_of(found: tuple[Object, ...]) -> list[Object]:
    return [each["spec"]["template"] for each in of_kind(found, "Deployment")]


def containers(template: Object) -> list[Object]:
    """The containers of a pod, in the order in which Kubernetes looks for a named port: native sidecars come last."""
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def environment(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env", [])}


def settings(container: Object) -> Settings:
    return load({}, environment(container))


def listeners(template: Object) -> dict[int, str]:
    """The ports of a pod, and the container that listens on each. Fails if two containers listen on one port."""
    found: list[tuple[int, str]] = []
    for container in containers(template):
        name, given, args = container["name"], environment(container), container.get("args", [])
        if name == GATEWAY:
            found += [(settings(container).port, GATEWAY), (settings(container).admin_port, ADMIN)]
        elif "--port" in args:  # LiteLLM's command uses the last --port, and prefers it to PORT
            found.append((int(args[len(args) - args[::-1].index("--port")]), name))
        elif "PORT" in given:
            found.append((int(given["PORT"]), name))
        else:
            found += [(port["containerPort"], name) for port in container["ports"]]
        if "PROMETHEUS_METRICS_PORT" in given:
            found.append((int(given["PROMETHEUS_METRICS_PORT"]), "metrics"))
    assert len({port for port, _ in found}) == len(found), found
    return dict(found)


def behind(found: tuple[Object, ...], service: str, port: int | str) -> str:
    """The container that a port of a Service leads to. It must be the same in each pod that the Service selects."""
    (spec,) = [each["spec"] for each in of_kind(found, "Service") if each["metadata"]["name"] == service]
    (target,) = [each["targetPort"] for each in spec["ports"] if port in (each["port"], each["name"])]
    reached = {
        listeners(template)[
            next(
                declared["containerPort"]
                for container in containers(template)
                for declared in container["ports"]
                if declared["name"] == target
            )
        ]
        for template in selected(spec["selector"], templates_of(found))
    }
    (container,) = reached
    return container


def routed(found: tuple[Object, ...], path: str) -> str:
    """The container that a request reaches through all Ingresses of the host.

    An exact path takes precedence over prefixes, and the longest prefix over others.
    """
    matches = []
    for ingress in of_kind(found, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            assert rule["host"] == HOST
            for each in rule["http"]["paths"]:
                exact, prefix = each["pathType"] == "Exact", each["path"].rstrip("/") + "/"
                if path == each["path"] or (not exact and path.startswith(prefix)):
                    matches.append((exact, len(prefix), each["backend"]["service"]))
    service = max(matches, key=lambda match: match[:2])[2]
    (port,) = service["port"].values()
    return behind(found, service["name"], port)


def pod_with_the_gateway(found: tuple[Object, ...]) -> tuple[Object, Object]:
    """The only pod template with a gateway, and the gateway's container."""
    ((template, container),) = [
        (template, container)
        for template in templates_of(found)
        for container in containers(template)
        if container["name"] == GATEWAY
    ]
    return template, container


@every_case
def test_the_chart_takes_every_value(case: Case) -> None:
    """The chart knows each value in our file, and the comment in the file names the chart's version."""

    def taken(given: Object, known: Object) -> None:
        assert given.keys() <= known.keys()
        for key, value in given.items():
            if isinstance(value, dict) and known[key]:
                taken(value, known[key])

    taken(values(case), yaml.safe_load((CHARTS / case.chart / "values.yaml").read_text()))
    version = yaml.safe_load((CHARTS / case.chart / "Chart.yaml").read_text())["version"]
    comment = " ".join((DEPLOY / "helm" / case.file).read_text().replace("#", "").split())
    assert f"seen with its templates of {version}." in comment


def test_every_file_is_a_case() -> None:
    assert sorted(path.name for path in (DEPLOY / "helm").iterdir()) == sorted(case.file for case in CASES)


@pytest.mark.parametrize("version", VERSIONS)
@every_release
@every_case
def test_every_object_is_valid(case: Case, release: str, version: str) -> None:
    """Every object is strictly valid, and no two objects of a kind have the same name."""
    found = objects(case, release)
    for each in found:
        kubernetes_validate.validate(
            each, kubernetes_validate.latest_version() if version == "newest" else version, strict=True
        )
    assert len({(each["kind"], each["metadata"]["name"]) for each in found}) == len(found)


@every_release
@every_case
def test_requests_reach_the_gateway(case: Case, release: str) -> None:
    """Requests to the operator's host reach the expected containers through the Ingresses, Services and ports."""
    assert {path: routed(objects(case, release), path) for path in case.routes} == case.routes


@every_case
def test_requests_reach_litellm_without_these_values(case: Case) -> None:
    """The chart alone sends a key update to LiteLLM."""
    enabled = "" if case.file != "litellm-monolith.yaml" else "\nmonolith: {enabled: true}"
    alone = rendered(case.chart, "litellm", case.operator + enabled)
    assert routed(alone, "/key/update") in ("litellm", "proxy", "backend")


@every_case
def test_the_gateway_is_before_litellm(case: Case) -> None:
    """The gateway's upstream is the loopback port on which LiteLLM listens in the same pod."""
    template, container = pod_with_the_gateway(objects(case, "litellm"))
    upstream = settings(container).upstream
    assert upstream.host == "127.0.0.1"
    assert listeners(template)[upstream.port] == template["spec"]["containers"][0]["name"]


@every_case
def test_probes_are_answered(case: Case) -> None:
    """Each probe names a port of its own container that a process listens on.

    The gateway's probes reach its admin listener. The kubelet looks for a port's name only among the container's own.
    """
    for template in templates_of(objects(case, "litellm")):
        for container in containers(template):
            declared = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                for action in container.get(probe, {}).keys() & {"httpGet", "tcpSocket"}:
                    listener = listeners(template)[declared[container[probe][action]["port"]]]
                    assert (listener == ADMIN) == (container["name"] == GATEWAY)


@every_release
@every_case
def test_the_policy_admits_what_has_to_pass(case: Case, release: str) -> None:
    """The policy selects only the gateway's pod, and admits the expected sources to each listener."""
    found = objects(case, release)
    template, _ = pod_with_the_gateway(found)
    (policy,) = of_kind(found, "NetworkPolicy")
    assert selected(policy["spec"]["podSelector"]["matchLabels"], templates_of(found)) == [template]
    admitted: dict[str, list[str]] = {}
    for rule in policy["spec"]["ingress"]:
        for port in rule["ports"]:
            if listener := listeners(template).get(port["port"]):
                admitted[listener] = [source(peer, release) for peer in rule.get("from", [])] or ["anywhere"]
    assert admitted == case.admitted


def source(peer: Object, release: str) -> str:
    """A peer of a policy in a word or two: a namespace's name, or the release's own pods."""
    if peer == {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": release}}}:
        return "the release"
    assert peer.keys() == {"namespaceSelector"}
    (label,) = peer["namespaceSelector"]["matchLabels"].items()
    assert label[0] == "kubernetes.io/metadata.name"
    return str(label[1])


@every_case
def test_scrapers_find_the_admin_listener(case: Case) -> None:
    """The labels that the overlays' ServiceMonitor selects lead to the Service of the admin listener."""
    monitor = yaml.safe_load((KUBERNETES / "components/servicemonitor/servicemonitor.yaml").read_text())
    found = objects(case, "litellm")
    (service,) = [
        each
        for each in of_kind(found, "Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"].get("labels", {}).items()
    ]
    assert service["metadata"]["labels"]["app.kubernetes.io/name"] == "litellm-sanitizer"
    assert behind(found, service["metadata"]["name"], monitor["spec"]["endpoints"][0]["port"]) == ADMIN


@every_case
def test_it_is_the_sidecar_of_the_overlay(case: Case) -> None:
    """The gateway is the same native sidecar as in the overlay, except for the names of its image and ports.

    The tests of the overlays check its other properties.
    """
    template, container = pod_with_the_gateway(objects(case, "litellm"))
    patch = yaml.safe_load((KUBERNETES / "components/sidecar/deployment.yaml").read_text())["spec"]["template"]["spec"]
    (overlay,) = patch["initContainers"]
    ports = {"SANITIZER_PORT", "SANITIZER_UPSTREAM"}
    for name in container.keys() | overlay.keys():
        if name == "env":
            ours, theirs = environment(container), environment(overlay)
            assert {each: ours[each] for each in ours.keys() - ports} == {
                each: theirs[each] for each in theirs.keys() - ports
            }
        elif name not in ("image", "ports"):
            assert container[name] == overlay[name]
    assert container["image"] == "ghcr.io/example/litellm-sanitizer:0.2.0"
    assert container["restartPolicy"] == "Always"
    assert template["spec"]["initContainers"] == [container]
    assert template["spec"]["containers"][0]["lifecycle"] == patch["containers"][0]["lifecycle"]
    assert template["spec"]["terminationGracePeriodSeconds"] == patch["terminationGracePeriodSeconds"]


@every_case
def test_variables_of_services_change_nothing(case: Case) -> None:
    """The variables that Kubernetes sets for each Service change no option of the gateway.

    They can't be avoided, because LiteLLM's charts can't set `enableServiceLinks: false`.
    """
    found = objects(case, "litellm")
    _, container = pod_with_the_gateway(found)
    names = [each["metadata"]["name"] for each in of_kind(found, "Service")]
    links: dict[str, str] = {}
    for name in [*names, "sanitizer"]:
        variable = name.upper().replace("-", "_")
        links |= {
            f"{variable}_SERVICE_HOST": "10.0.0.1",
            f"{variable}_SERVICE_PORT": "4000",
            f"{variable}_SERVICE_PORT_HTTP": "4000",
            f"{variable}_PORT": "tcp://10.0.0.1:4000",
            f"{variable}_PORT_4000_TCP": "tcp://10.0.0.1:4000",
            f"{variable}_PORT_4000_TCP_ADDR": "10.0.0.1",
        }
    seen = links | environment(container)  # the variables of the pod's own spec take precedence
    assert load({}, seen) == settings(container)
    assert not unknown_variables(seen)
