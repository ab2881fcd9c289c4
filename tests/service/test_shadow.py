"""A foreign `guardrails` package is noticed before anything of it is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service._shadow import ForeignPackageError, refuse_foreign_packages


def test_keels_own_packages_pass() -> None:
    refuse_foreign_packages()


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(ForeignPackageError, match=r"'no_such_package'.*missing"):
        refuse_foreign_packages(("no_such_package",))


def test_a_foreign_package_in_front_is_refused_and_never_imported(tmp_path: Path) -> None:
    foreign = tmp_path / "guardrails"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("print('the foreign package ran')")
    program = "from service._shadow import refuse_foreign_packages; refuse_foreign_packages()"
    ran = subprocess.run(
        [sys.executable, "-c", f"import service, sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert "ForeignPackageError" in ran.stderr
    assert str(foreign / "__init__.py") in ran.stderr
    assert "run Keel in an environment of its own" in ran.stderr
    assert "the foreign package ran" not in ran.stdout
