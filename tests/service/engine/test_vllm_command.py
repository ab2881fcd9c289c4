"""The command line and environment that vLLM is started with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.engine.vllm_command import VllmConfig, command, environment, on_cpu


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_on_a_cpu_host(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_LOGGING_CONFIG_PATH", "KEEL_ADMIN_KEY"):
        monkeypatch.setenv(name, "1")
    config = VllmConfig(model, "chat", device="cpu", kv_cache_bytes=1 << 20, max_model_len=512)
    words = " ".join(command(config, 4711))
    for expected in (
        "--served-model-name chat",
        "--host 127.0.0.1 --port 4711",
        "--distributed-executor-backend uni --enforce-eager --no-enable-chunked-prefill",
        "--kv-cache-memory-bytes 1048576",
        "--max-model-len 512",
        "--disable-uvicorn-access-log",
        "--logits-processors service.alignment.vllm_constraints:Constraints",
    ):
        assert expected in words
    variables = environment(config, "key-1")
    assert variables["VLLM_API_KEY"] == "key-1"
    assert "key-1" not in words
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert variables["OMP_NUM_THREADS"] == variables["TORCH_COMPILE_DISABLE"] == "1"
    assert variables["HF_HUB_OFFLINE"] == variables["VLLM_NO_USAGE_STATS"] == variables["DO_NOT_TRACK"] == "1"
    assert not {"VLLM_CPU_KVCACHE_SPACE", "VLLM_LOGGING_CONFIG_PATH", "KEEL_ADMIN_KEY"} & variables.keys()


def test_on_a_gpu_host_vllm_chooses_for_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = VllmConfig(model, "chat", device="gpu")
    words = command(config, 4711)
    assert not {"--enforce-eager", "--distributed-executor-backend", "--kv-cache-memory-bytes"} & set(words)
    variables = environment(config, "key-1")
    assert (
        not {"VLLM_ENABLE_V1_MULTIPROCESSING", "TORCH_COMPILE_DISABLE", "OMP_NUM_THREADS"} & variables.keys()
    )
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_what_is_given_wins(model: Path) -> None:
    config = VllmConfig(
        model, "chat", device="cpu", arguments=("--max-num-seqs", "8"), environment={"OMP_NUM_THREADS": "2"}
    )
    assert command(config, 1)[-2:] == ["--max-num-seqs", "8"]
    assert environment(config, "k")["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(("device", "cpu"), [("cpu", True), ("gpu", False)])
def test_the_device_may_be_said(device: str, cpu: bool) -> None:
    assert on_cpu(device) is cpu  # type: ignore[arg-type]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at .* it has no config\.json"):
        VllmConfig(tmp_path, "chat")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the death pact is Linux's")
def test_the_death_pact_runs_the_command_it_is_given(model: Path) -> None:
    words = command(VllmConfig(model, "chat", device="gpu"), 1)
    pact = words[: words.index("vllm.entrypoints.openai.api_server") - 2]
    check = "import sys; print(sys.argv[1:], open('/proc/self/status').read().count('Name'))"
    done = subprocess.run(
        [*pact, sys.executable, "-c", check, "a"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['a'] 1\n"
    stranger = [*pact[:5], "1", sys.executable, "-c", check]  # as if the gateway had died just before
    assert subprocess.run(stranger, check=False).returncode == 1


def test_vllm_knows_every_argument_that_it_is_given(model: Path) -> None:
    """Against the names in vLLM's installed source, since asking vLLM itself takes half a minute."""
    import importlib.util

    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed in this environment: nothing to compare with")
    root = Path(spec.origin).parent
    sources = [
        root / "engine" / "arg_utils.py",
        *(root / "entrypoints").rglob("*.py"),
        *(root / "config").glob("*.py"),
    ]
    text = "\n".join(source.read_text() for source in sources)
    config = VllmConfig(model, "chat", device="cpu", max_model_len=512)
    flags = [word for word in command(config, 1) if word.startswith("--")]
    assert len(flags) > 7
    for flag in flags:
        assert flag.removeprefix("--").removeprefix("no-").replace("-", "_") in text, flag


def test_a_child_on_a_cpu_forks_its_engine_and_still_runs_where_vllm_has_changed(
    model: Path, tmp_path: Path
) -> None:
    """vLLM's own `get_mp_context` is replaced where it was imported to; a vLLM without it is run as it is."""
    words = command(VllmConfig(model, "chat", device="cpu"), 1)
    main = words.index("-P")
    start = [*words[main - 1 : main + 2], "an", "argument"]
    show = "import sys; print(sys.argv[1:], sys.path[0].endswith('engine'))\n"
    utils = "def get_mp_context():\n    return None\n"
    use = "from vllm.utils.system_utils import get_mp_context\nprint(get_mp_context().get_start_method())\n"
    for name, system, server, expected in (
        ("new", None, show, "['an', 'argument'] False\n"),
        ("now", utils, use + show, "fork\n['an', 'argument'] False\n"),
    ):
        package = tmp_path / name / "vllm"
        (package / "entrypoints" / "openai").mkdir(parents=True)
        (package / "entrypoints" / "openai" / "api_server.py").write_text(server)
        if system is not None:
            (package / "utils").mkdir()
            (package / "utils" / "system_utils.py").write_text(system)
        for folder in (package, *(path for path in package.rglob("*") if path.is_dir())):
            (folder / "__init__.py").touch()
        environ = {**os.environ, "PYTHONPATH": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(start, capture_output=True, text=True, check=True, env=environ)
        assert done.stdout == expected
