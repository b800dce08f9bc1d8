"""The systemd unit, checked by systemd's own tools. tests/containers runs it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.programs import DEPLOY, program

UNIT = DEPLOY / "systemd" / "litellm-sanitizer.service"
EXPOSURE = 14
"""Ten times the exposure that `systemd-analyze security` computes for the unit. deploy/README.md states it."""
TIMEOUT = 60.0


def systemd_analyze() -> str:
    return program("systemd-analyze", "Debian: systemd")


def verify(unit: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run `systemd-analyze verify` on ``unit``, below a ``root`` in which all files that the unit names exist."""
    for folder in ("etc/systemd/system", "opt/litellm-sanitizer/bin", "usr/bin"):
        (root / folder).mkdir(parents=True)
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    (root / "etc/systemd/system" / UNIT.name).write_text(unit)
    for name in ("opt/litellm-sanitizer/bin/litellm-sanitizer", "usr/bin/kill"):
        (root / name).write_text("#!/bin/sh\n")
        (root / name).chmod(0o755)
    command = [systemd_analyze(), "verify", f"--root={root}", "--man=no", "--recursive-errors=no", UNIT.name]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize("drop_in", [False, True], ids=["as it is", "with all that is commented out"])
def test_verify(tmp_path: Path, drop_in: bool) -> None:
    """systemd knows every option and value in the unit, including the lines that are commented out."""
    unit = UNIT.read_text()
    done = verify(re.sub("^#(?=[A-Z][A-Za-z]+=)", "", unit, flags=re.MULTILINE) if drop_in else unit, tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_verify_finds_mistakes(tmp_path: Path) -> None:
    """An option that systemd does not know is found."""
    done = verify(UNIT.read_text().replace("ProtectSystem=", "ProtectsSystem="), tmp_path)
    assert "Unknown key" in done.stderr


def test_security() -> None:
    """The sandbox is as tight as deploy/README.md says."""
    command = [systemd_analyze(), "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rates it {EXPOSURE / 10} " in (DEPLOY / "README.md").read_text()
