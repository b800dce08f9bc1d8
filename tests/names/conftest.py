"""Each test of this folder runs in its own network and mount namespaces, with the addresses and resolver it needs.

Each test function runs in a second pytest, which `unshare` starts. This requires root, or the right to create user
namespaces, and `ip` from iproute2.
"""

import os
import subprocess
import sys

import pytest

UNSHARE = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net", "--mount"]
PYTEST = [*UNSHARE, sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
INSIDE = "IN_A_NAMESPACE"
TIMEOUT = 120.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the test in its own namespaces."""
    if INSIDE in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=TIMEOUT)
        return None
    probe = subprocess.run([*UNSHARE, "ip", "link"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if probe.returncode:
        pytest.skip(f"takes namespaces and iproute2: {probe.stderr.strip()}")
    result = subprocess.run(
        [*PYTEST, f"{pyfuncitem.path}::{pyfuncitem.name}"],
        env=os.environ | {INSIDE: "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # plugins take long to load
        cwd=pyfuncitem.config.rootpath,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if result.returncode:
        pytest.fail(result.stdout, pytrace=False)
    return True
