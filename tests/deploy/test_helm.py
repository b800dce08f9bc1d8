"""deploy/helm/values.yaml, put where LiteLLM's chart puts it. No helm runs here: what the chart does is written down.

Read in BerriAI/litellm, deploy/charts/litellm-helm, chart 1.1.0: `extraInitContainers` becomes the pod's own list,
`lifecycle` LiteLLM's, `extraResources` are written out as they are; pods are labelled with the chart's name and the
release's; LiteLLM's port is named `http`, on `service.port` (4000).
"""

from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.programs import DEPLOY, KUBERNETES, VERSIONS

TAKEN = {"extraInitContainers", "lifecycle", "terminationGracePeriodSeconds", "extraResources"}
LABELS = {"app.kubernetes.io/name": "litellm", "app.kubernetes.io/instance": "litellm"}


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
    return found


def deployment() -> dict[str, Any]:
    given = values()
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "litellm", "labels": LABELS},
        "spec": {
            "selector": {"matchLabels": LABELS},
            "template": {
                "metadata": {"labels": LABELS},
                "spec": {
                    "initContainers": given["extraInitContainers"],
                    "containers": [
                        {
                            "name": "litellm",
                            "image": "ghcr.io/berriai/litellm-database:v1",
                            "ports": [{"name": "http", "containerPort": 4000, "protocol": "TCP"}],
                            "lifecycle": given["lifecycle"],
                        }
                    ],
                    "terminationGracePeriodSeconds": given["terminationGracePeriodSeconds"],
                },
            },
        },
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_chart_makes_of_it_is_valid(version: str) -> None:
    """Strictly, and no value is one that the chart does not take."""
    assert set(values()) == TAKEN
    for each in [deployment(), *values()["extraResources"]]:
        kubernetes_validate.validate(
            each, kubernetes_validate.latest_version() if version == "newest" else version, strict=True
        )


def test_it_is_the_sidecar_of_the_overlay() -> None:
    """The same container, which the policy tests judge there; only the image's name is written out."""
    (sidecar,) = values()["extraInitContainers"]
    patch = yaml.safe_load((KUBERNETES / "components/sidecar/deployment.yaml").read_text())
    (overlay,) = patch["spec"]["template"]["spec"]["initContainers"]
    assert {**sidecar, "image": "litellm-sanitizer"} == overlay


def test_the_services_find_the_pod() -> None:
    """They select what the chart's labels are for a release named `litellm`, and point at ports of the sidecar."""
    (sidecar,) = values()["extraInitContainers"]
    ports = {port["name"] for port in sidecar["ports"]}
    services = values()["extraResources"]
    assert [service["metadata"]["name"] for service in services] == ["litellm-sanitizer", "litellm-sanitizer-admin"]
    for service in services:
        assert service["spec"]["selector"] == LABELS
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports - {"http"}
