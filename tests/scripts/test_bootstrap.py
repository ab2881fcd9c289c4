"""The environment's set-up, run for real against a folder of wheels, without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from scripts import bootstrap

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _wheel(folder: Path, name: str, version: str) -> None:
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with Keel's set-up scripts and a lock of two small packages."""
    checkout = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    (checkout / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "uv.txt", checkout / "requirements")
    (checkout / "requirements" / "serve.txt").write_text("# two packages\nlittle==1.0\ntorch==2.13.0+cpu\n")
    (checkout / "pyproject.toml").write_text("[project]\nname = 'keel'\nversion = '0'\n")
    # The one thing that cannot come from a folder of hand-made wheels.
    made = subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    assert made.returncode == 0
    uv = Path(sys.executable).with_name("uv")
    (checkout / ".venv" / "bin" / "uv").symlink_to(uv)
    return checkout


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    _wheel(folder, "little", "1.0")
    _wheel(folder, "torch", "2.13.0+cpu")
    return folder


@pytest.fixture
def run(checkout: Path, wheels: Path, tmp_path: Path) -> Run:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {
            "HOME": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "PYTHON": sys.executable,
            "UV_OFFLINE": "1",
            "PIP_FIND_LINKS": str(wheels),
        }
        return subprocess.run(
            [checkout / "scripts" / "bootstrap", *arguments],
            env={**clean, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def _installed(checkout: Path, module: str) -> str:
    program = f"import {module}; print({module}.version)"
    return subprocess.check_output([checkout / ".venv" / "bin" / "python", "-c", program], text=True).strip()


def test_installs_the_lock_and_shows_its_steps(run: Run, checkout: Path) -> None:
    done = run("serve", "--device", "cpu", "--packages-only")
    assert done.returncode == 0, done.stderr
    for step in ("[1/4] Python 3.", "[2/4] uv ", "[3/4] 2 packages from requirements/serve.txt"):
        assert step in done.stdout
    assert _installed(checkout, "little") == "1.0"
    assert _installed(checkout, "torch") == "2.13.0+cpu"
    again = run("serve", "--device", "cpu", "--packages-only")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_a_lock_that_changed_replaces_what_is_installed(run: Run, checkout: Path, wheels: Path) -> None:
    assert run("serve", "--device", "cpu", "--packages-only").returncode == 0
    _wheel(wheels, "little", "1.1")
    lock = checkout / "requirements" / "serve.txt"
    lock.write_text(lock.read_text().replace("little==1.0", "little==1.1"))
    assert run("serve", "--device", "cpu", "--packages-only").returncode == 0
    assert _installed(checkout, "little") == "1.1"


def test_torch_that_is_nowhere_names_both_places_and_a_way_out(run: Run, wheels: Path) -> None:
    next(wheels.glob("torch-*")).unlink()
    done = run("serve", "--device", "cpu", "--packages-only")
    assert done.returncode == 1
    assert "torch==2.13.0+cpu, the CPU build, was found in neither" in done.stderr
    assert "1. Where pip is configured to look" in done.stderr
    assert "2. PyTorch's own index" in done.stderr
    assert "PIP_FIND_LINKS=FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_package_is_reported_once_and_without_a_traceback(run: Run, wheels: Path) -> None:
    next(wheels.glob("little-*")).unlink()
    done = run("serve", "--device", "cpu", "--packages-only")
    assert done.returncode == 1
    assert "little==1.0" in done.stderr
    assert "keel: uv could not install the packages" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_old_python_is_told_what_to_install(checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "bin"
    old.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        (old / name).write_text("#!/bin/sh\nexit 1\n")
        (old / name).chmod(0o755)
    for tool in ("sh", "dirname"):
        (old / tool).symlink_to(shutil.which(tool) or tool)
    done = subprocess.run(
        [checkout / "scripts" / "bootstrap", "serve"],
        env={"PATH": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no Python 3.11 to 3.14 found" in done.stderr
    assert "PYTHON=" in done.stderr


# ---- what decides whether and what to install ------------------------------------------------------------


@pytest.fixture
def here(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout, as the place that `bootstrap` works in."""
    monkeypatch.setattr(bootstrap, "ROOT", checkout)
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", checkout / "requirements")
    return checkout


def _finish(venv: Path, lock: Path) -> None:
    done = bootstrap.Installed(
        lock.stem, bootstrap.packages_digest(lock), bootstrap.keel_digest(editable=True)
    )
    (venv / bootstrap.STAMP).write_text(json.dumps(asdict(done)))


def test_the_digests_cover_lock_uv_and_packaging(here: Path) -> None:
    lock = here / "requirements" / "serve.txt"
    packages, keel = bootstrap.packages_digest(lock), bootstrap.keel_digest(editable=True)
    assert bootstrap.packages_digest(lock) == packages
    (here / "pyproject.toml").write_text("[project]\nname = 'keel'\nversion = '1'\n")
    assert bootstrap.keel_digest(editable=True) != keel
    assert bootstrap.packages_digest(lock) == packages
    (here / "requirements" / "uv.txt").write_text("uv==0.0.1\n")
    assert (after := bootstrap.packages_digest(lock)) != packages
    lock.write_text("little==1.1\n")
    assert bootstrap.packages_digest(lock) != after


def test_nothing_is_done_where_everything_is_in_place(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = here / "requirements" / "serve.txt"
    _finish(here / ".venv", lock)
    bootstrap.install(here / ".venv", lock, editable=True)
    assert capsys.readouterr().out == ""


def test_a_stamp_without_its_interpreter_does_not_count(here: Path) -> None:
    _finish(here / ".venv", here / "requirements" / "serve.txt")
    assert bootstrap.installed(here / ".venv") is not None
    (here / ".venv" / "bin" / "python").unlink()
    assert bootstrap.installed(here / ".venv") is None
    (here / ".venv" / bootstrap.STAMP).write_text("of an older release")
    assert bootstrap.installed(here / ".venv") is None


def test_an_environment_for_tests_also_serves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = here / "requirements" / "dev.txt"
    dev.write_text("little==1.0\n")
    _finish(here / ".venv", dev)
    bootstrap.install(here / ".venv", here / "requirements" / "serve.txt", editable=True)
    assert capsys.readouterr().out == ""
    assert bootstrap.installed(here / ".venv").lock == "dev"  # type: ignore[union-attr]


def test_a_host_with_a_gpu_takes_the_cuda_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert bootstrap.resolve_device("auto") == "cpu"
    driver.write_text("#!/bin/sh\necho 'GPU 0: A Card (UUID: GPU-0)'\n")
    driver.chmod(0o755)
    assert bootstrap.resolve_device("auto") == "cuda"
    assert bootstrap.resolve_device("cpu") == "cpu"
    driver.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert bootstrap.resolve_device("auto") == "cpu"
    assert bootstrap.lock_for("serve", "cuda").name == "cuda.txt"
    assert bootstrap.lock_for("dev", "cuda").name == "cuda.txt"
    assert bootstrap.lock_for("gateway", "cuda").name == "gateway.txt"
    assert bootstrap.lock_for("serve", "cpu").name == "serve.txt"


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_other_platforms_are_refused_before_anything_is_done(system: str, machine: str) -> None:
    with pytest.raises(bootstrap.BootstrapError, match=f"this is {system} on {machine}"):
        bootstrap.check_platform(system, machine)


def test_a_python_without_pip_and_ensurepip_is_told_which_package_brings_them(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / ".venv" / "bin" / "uv").unlink()
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(checkout))
    with pytest.raises(bootstrap.BootstrapError, match=r"apt-get install python3\.\d+-venv"):
        bootstrap.install_uv(checkout / ".venv", "uv==1.0")


def test_libnuma_is_made_only_where_the_system_has_none(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = checkout / ".venv"
    hook = bootstrap._site_packages(venv) / "keel_libnuma.pth"
    monkeypatch.setattr(bootstrap, "_loads", lambda library: False)
    bootstrap.provide_libnuma(venv)
    program = "import ctypes; print(ctypes.CDLL('libnuma.so.1').numa_available())"
    shown = subprocess.check_output([venv / "bin" / "python", "-c", program], text=True)
    assert shown.strip() == "-1"
    monkeypatch.setattr(bootstrap, "_loads", lambda library: True)
    bootstrap.provide_libnuma(venv)
    assert not hook.exists()


def test_a_second_set_up_waits_for_the_first(checkout: Path, run: Run) -> None:
    with bootstrap._exclusive(checkout / ".venv"):
        waiting = subprocess.Popen(
            [checkout / "scripts" / "bootstrap", "serve", "--device", "cpu", "--packages-only"],
            env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "UV_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert waiting.stdout is not None
        assert "another set-up of this environment is under way" in waiting.stdout.readline()
    waiting.communicate(timeout=60)
