"""The podman that all tests of this folder share, and the images that they run. Each image is built once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.podman import Podman
from tests.deploy.programs import ROOT

BASES = ["bookworm", "trixie"]
"""Debian 12 has Python 3.11, and Debian 13 has 3.13."""

STAND_INS = Path(__file__).parent / "images"
RELEASE = "1.83.13"


class Images:
    """Builds images at first use."""

    def __init__(self, podman: Podman, bases: Path) -> None:
        self.podman = podman
        self._bases = bases
        self._made: set[str] = set()

    def base(self, suite: str) -> str:
        name = f"localhost/base:{suite}"
        if self._new(name):
            self.podman("import", "--quiet", str(self._bases / f"{suite}.tar"), name)
        return name

    def gateway(self, suite: str) -> str:
        """The Dockerfile's image, on the base ``suite``."""
        name = f"localhost/litellm-sanitizer:{suite}"
        if self._new(name):
            builder = self.stand_in("builder", f"localhost/builder:{suite}", suite)
            options = ["--build-arg", f"BASE={self.base(suite)}", "--build-arg", f"BUILDER={builder}"]
            self.podman.build(name, ROOT, *options)
        return name

    def stand_in(self, target: str, name: str, suite: str, *options: str) -> str:
        """The image that images/Containerfile describes as ``target``, tagged ``name``."""
        if self._new(name):
            self.podman.build(name, STAND_INS, "--target", target, "--build-arg", f"BASE={self.base(suite)}", *options)
        return name

    def postgres(self, name: str) -> str:
        return self.stand_in("postgres", name, "bookworm")

    def litellm(self, name: str) -> str:
        """LiteLLM as the rig has installed it, with Python 3.11."""
        rig = os.environ.get("LITELLM_RIG")
        if not rig:
            pytest.skip(f"LITELLM_RIG names no folder in which tests/litellm/rig/up.sh has installed {RELEASE}")
        options = ["--build-context", f"rig={rig}", "--build-arg", f"RELEASE={RELEASE}"]
        return self.stand_in("litellm", name, "bookworm", *options)

    def _new(self, name: str) -> bool:
        new = name not in self._made
        self._made.add(name)
        return new


@pytest.fixture(scope="package")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    if os.geteuid() != 0:
        pytest.skip("these containers take root")
    with Podman(tmp_path_factory.mktemp("podman")) as podman:
        yield podman


@pytest.fixture(scope="package")
def images(podman: Podman) -> Images:
    bases = os.environ.get("IMAGE_BASES")
    if not bases:
        pytest.skip("IMAGE_BASES names no folder with bases for the images (tests/containers/base.sh makes them)")
    return Images(podman, Path(bases))
