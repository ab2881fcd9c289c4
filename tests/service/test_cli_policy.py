"""`keel policy`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.auth import KeyFile
from service.cli_policy import policy_app

MINE = """\
name: mine
model: {upstream: {base_url: 'http://127.0.0.1:9/v1', model: m}}
input:
  - {guard: patterns, patterns: ['(?i)\\bproject zephyr\\b'], action: block}
  - {guard: secrets, action: mask}
output:
  - {guard: tool_calls, allow: ['search*'], arguments: [{guard: secrets}]}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEEL_POLICIES", json.dumps([str(tmp_path)]))
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return path


def keel(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(policy_app, list(arguments), input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_validate_says_what_is_right_and_everything_that_is_wrong(mine: Path, tmp_path: Path) -> None:
    status, out, _ = keel("validate", str(mine))
    assert status == 0 and out.startswith("ok  mine  ")
    (tmp_path / "bad.yaml").write_text(
        MINE.replace("mine", "bad").replace("zephyr\\b", "(zephyr").replace("mask", "msk")
    )
    (tmp_path / "worse.yaml").write_text(MINE.replace("mine", "worse").replace("zephyr\\b", "(zephyr"))
    status, out, err = keel("validate", str(tmp_path))
    assert status == 1
    assert f"{tmp_path}/bad.yaml:5:30: input[1].action: can't be 'msk'; did you mean 'mask'?" in err
    assert f"{tmp_path}/worse.yaml:4:34: input[0].patterns[0]: " in err, (
        "the guards' own checks have places too"
    )
    assert "2 problems" in err


def test_show_writes_defaults_out(mine: Path) -> None:
    status, out, _ = keel("show", "mine")
    assert status == 0 and "# digest " in out and "on_error: block" in out and "entropy: true" in out
    status, out, _ = keel("show", str(mine), "--json")
    assert json.loads(out)["policy"]["max_n"] == 16
    status, _, err = keel("show", "nope")
    assert (
        status == 2 and "there is no policy 'nope'; there are: mine, observe, open, standard, strict" in err
    )
    status, _, err = keel("show", "./nowhere.yaml")
    assert status == 2 and "nowhere.yaml:1:1: can't be read: No such file" in err


def test_diff_exits_like_diff(mine: Path) -> None:
    assert keel("diff", "mine", str(mine)) == (0, "", "")
    status, out, _ = keel("diff", "standard", "strict")
    assert status == 1
    assert "~ input.injection.threshold: 0.9 → 0.7\n" in out
    assert '+ input.toxicity: {"guard": "toxicity"}\n' in out


def test_try_shows_every_guard_and_what_passes(mine: Path) -> None:
    status, out, _ = keel("try", "mine", "my password is Tr0ub4dor&3, ok?")
    assert status == 0
    assert "patterns" in out and "allow" in out
    assert "ASSIGNED_SECRET 15–26 'Tr0ub4dor&3'" in out
    assert "modified\nmy password is <ASSIGNED_SECRET_1>, ok?\n" in out
    status, out, _ = keel("try", "mine", "-", stdin="about Project Zephyr and <b>markup</b> [bold]x[/bold]")
    assert status == 0 and "blocked" in out and "'Project Zephyr'" in out
    status, out, _ = keel("try", "mine", "see <b>markup</b> [bold]x[/bold]")
    assert out.endswith("passed\nsee <b>markup</b> [bold]x[/bold]\n")


def test_try_as_json_holds_no_found_text(mine: Path) -> None:
    status, out, _ = keel("try", "mine", "--json", "password = 'Tr0ub4dor&3'")
    told = json.loads(out)
    assert status == 0 and told["action"] == "redact" and "Tr0ub" not in out
    assert told["guards"][1]["findings"] == [
        {"entity_type": "ASSIGNED_SECRET", "start": 12, "end": 23, "score": 0.8}
    ]


def test_try_tool_calls(mine: Path) -> None:
    arguments = '{"q": "password = \\u0054r0ub4dor&3"}'
    status, out, _ = keel("try", "mine", "--stage", "output", "--tool", "search_web", arguments)
    assert status == 0 and '{"q": "password = [ASSIGNED_SECRET]"}' in out
    status, out, _ = keel("try", "mine", "--stage", "output", "--tool", "delete_all", "{}")
    assert "TOOL_NAME_REFUSED" in out and "blocked" in out


def test_try_tells_of_roles_that_are_not_examined(mine: Path) -> None:
    _, _, err = keel("try", "mine", "hello", "--role", "system")
    assert "does not examine what role 'system' says" in err


def test_try_refuses_what_could_not_be_served(mine: Path) -> None:
    mine.write_text(MINE.replace("zephyr\\b", "(zephyr"))
    status, _, err = keel("try", "mine", "hello")
    assert status == 2 and "mine.yaml:4:34" in err


def test_help_teaches_with_examples() -> None:
    for command, example in (
        ("try", "keel policy try standard"),
        ("diff", "keel policy diff standard strict"),
        ("validate", "keel policy validate"),
        ("show", "keel policy show standard"),
    ):
        status, out, _ = keel(command, "--help")
        assert status == 0 and example in out


def test_validate_tells_of_keys_that_nobody_has(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.write_text(MINE + "adjustable: [{setting: refusal}]\n")
    (tmp_path / "tenants").mkdir()
    file = tmp_path / "tenants" / "acme.yaml"
    file.write_text("tenant: acme\nkeys: [acme-wbe, settings-1]\npolicies: {mine: {refusal: No.}}\n")
    for name, value in {"TENANTS": [str(file.parent)], "API_KEYS": ["0123456789abcdef"]}.items():
        monkeypatch.setenv(f"KEEL_{name}", json.dumps(value))
    monkeypatch.setenv("KEEL_STATE_DIR", str(tmp_path / "state"))
    KeyFile(tmp_path / "state" / "keys.json").create("acme-web")
    status, out, err = keel("validate")
    assert status == 0 and "ok  mine#acme  " in out
    assert err == f"note: {file}: there is no key 'acme-wbe' yet; did you mean 'acme-web'?\n"
