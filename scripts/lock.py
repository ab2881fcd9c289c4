"""Write the lock files in `requirements/` from the `.in` files beside them (`make lock`).

uv resolves each list once for all supported Python versions; what comes out is then reduced to the one
platform that Keel runs on, Linux on x86-64 with CPython. A package stays if any supported Python needs
it, with a marker where not all do.

The locks name versions and no hosts. They carry no hashes either: torch's CPU build comes from whichever
place the machine can reach (see `scripts/bootstrap.py`), and those places hold different files.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCH = "torch==2.13.0"

# In this order. A lock keeps the versions of the one named beside it: the smaller ones are parts of dev.
LOCKS = {"dev": "dev", "serve": "dev", "gateway": "dev", "cuda": "cuda"}

HEADER = """\
# Written by `make lock` from requirements/{name}.in. Linux x86-64, CPython {first} to {last}.
"""


def main() -> int:
    for name, preferred in LOCKS.items():
        path = REQUIREMENTS / f"{name}.txt"
        resolved = _resolve(name, REQUIREMENTS / f"{preferred}.txt")
        lines = sorted(_reduce(resolved, cpu=name != "cuda"), key=lambda line: line.split("==")[0].lower())
        path.write_text(
            HEADER.format(name=name, first=PYTHONS[0], last=PYTHONS[-1]) + "\n".join(lines) + "\n"
        )
        print(f"{path.relative_to(ROOT)}: {len(lines)} packages", flush=True)
    return 0


def _resolve(name: str, preferred: Path) -> str:
    """What uv resolves for one list, as requirement lines with markers.

    The versions in `preferred` are kept wherever they still fit.
    """
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", f"requirements/{name}.in", "--universal"),
        *("--python-version", PYTHONS[0], "--fork-strategy", "fewest"),
        *("--no-annotate", "--no-header", "--quiet"),
    ]
    if name != "cuda":
        command += ["--overrides", "requirements/overrides.txt"]
    with tempfile.TemporaryDirectory() as scratch:
        resolved = Path(scratch, "lock.txt")
        resolved.write_text(_as_resolved(preferred) if preferred.exists() else "")
        subprocess.run([*command, "--output-file", resolved], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        return resolved.read_text()


def _as_resolved(lock: Path) -> str:
    """A lock's pins with torch named as uv resolves it."""
    return lock.read_text().replace(f"{TORCH}+cpu", TORCH).replace(TORCH.replace("==", "==="), TORCH)


def _reduce(resolved: str, *, cpu: bool) -> Iterator[str]:
    """Keep what Linux x86-64 needs; on the CPU, drop what only torch's CUDA build asks for."""
    for line in resolved.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if cpu and (requirement.name.startswith(("nvidia-", "cuda-")) or requirement.name == "triton"):
            continue
        pin = f"{requirement.name}{requirement.specifier}"
        if pin == TORCH:
            # The index's own build is the CUDA build; `==` would also take a CPU build where one is offered.
            pin = f"{TORCH}+cpu" if cpu else TORCH.replace("==", "===")
        needed_by = [python for python in PYTHONS if _applies(requirement, python)]
        if needed_by:
            yield pin + _marker(needed_by)


def _applies(requirement: Requirement, python: str) -> bool:
    environment = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _marker(needed_by: list[str]) -> str:
    if len(needed_by) == len(PYTHONS):
        return ""
    first, last = needed_by[0], needed_by[-1]
    bounds = []
    if first != PYTHONS[0]:
        bounds.append(f"python_version >= '{first}'")
    if last != PYTHONS[-1]:
        bounds.append(f"python_version <= '{last}'")
    return " ; " + " and ".join(bounds)


if __name__ == "__main__":
    sys.exit(main())
