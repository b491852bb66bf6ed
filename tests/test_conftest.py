"""A skipped test counts as a failed one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent


@pytest.mark.parametrize(
    "body",
    [
        "def test(): pytest.skip('no reason')",
        "@pytest.mark.skipif(True, reason='x')\ndef test(): pass",
        "@pytest.mark.xfail\ndef test(): assert False",
        "@pytest.mark.xfail\ndef test(): pass",
        "pytest.importorskip('there_is_no_such_module')",
    ],
)
def test_a_skipped_test_fails(tmp_path: Path, body: str) -> None:
    """Each body would look green elsewhere: it is skipped or expected to fail. A run of it with our conftest is red."""
    (tmp_path / "conftest.py").write_text((HOME / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(f"import pytest\n{body}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0, done.stdout
    assert "must run and pass" in done.stdout
