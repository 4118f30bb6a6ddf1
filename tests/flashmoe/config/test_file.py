"""The configuration: what is wrong is named with line and suggestion, and spoils nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe.config import docs as config_docs
from flashmoe.config.load import load_config
from flashmoe.config.schema import Config
from flashmoe.presets import load_presets


def load(path: Path, text: str, **environ: str) -> Any:
    path.write_text(text, encoding="utf-8")
    return load_config(path, environ)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_no_file_is_the_defaults(file: Path) -> None:
    loaded = load_config(file, {})
    assert loaded.config == Config()
    assert not loaded.exists
    assert not loaded.problems


def test_the_printed_defaults_are_the_defaults_in_force(file: Path) -> None:
    commented = config_docs.default_yaml()
    assert load(file, commented).config == Config()
    # With every field's comment mark taken off it must still be valid and say the same.
    fields = {name for kind in Config.__struct_fields__ for name in getattr(Config(), kind).__struct_fields__}
    lines = [
        line.replace("  # ", "  ", 1) if line.strip("# ").partition(":")[0] in fields else line
        for line in commented.splitlines()
    ]
    loaded = load(file, "\n".join(lines))
    assert loaded.problems == ()
    assert loaded.config == Config()
    assert set(yaml.safe_load("\n".join(lines))["backend"]) == set(Config().backend.__struct_fields__)


def test_every_field_is_documented() -> None:
    for section in Config.__struct_fields__:
        kind = type(getattr(Config(), section))
        docs = config_docs.field_docs(kind)
        assert set(docs) == set(kind.__struct_fields__)


def test_schema_is_json_and_holds_the_documentation() -> None:
    schema = json.loads(json.dumps(config_docs.json_schema()))
    ram = schema["$defs"]["BackendConfig"]["properties"]["ram"]
    assert "GiB" in ram["description"]
    assert schema["$defs"]["BackendConfig"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("backend:\n  ram: 6\n  gpu_layer: 3\n", 3, ("gpu_layer", "did you mean gpu_layers")),
        ("backend:\n  ram: 6\nchatt: {}\n", 3, ("chatt", "did you mean chat")),
        ("theme: dark\n", 1, ("theme", "below ui")),
        ("ui:\n\n  monitor: showm\n", 3, ("showm", "did you mean shown")),
        ("downloads:\n  parallel: 99\n", 2, ("99", "from 1 to 16")),
        ("backend:\n  ram: -1\n", 2, ("-1", "above 0")),
        ("backend:\n  threads: lots\n", 2, ("lots", "whole number", "auto")),
        ("backend:\n  ram: true\n", 2, ("true", "number")),
        ("ui:\n  keys:\n    - a\n", 3, ("keys", "mapping")),
        ("ui: dark\n", 1, ("ui", "fields")),
        ("- a\n- b\n", 1, ("mapping",)),
        ("ui:\n  theme: [\n", 3, ("not valid YAML",)),
        ("ui:\n  calm: off\n  calm: on\n", 3, ("line 2",)),
    ],
)
def test_a_wrong_field_is_named_with_its_line(file: Path, text: str, line: int, words: tuple[str, ...]) -> None:
    (problem,) = load(file, text).problems
    assert problem.where == f"{file}:{line}"
    for word in words:
        assert word in problem.sentence


def test_a_wrong_field_spoils_nothing_else(file: Path) -> None:
    loaded = load(file, "backend:\n  ram: lots\n  threads: 3\nnope: 1\nui:\n  theme: dusk\nchat:\n")
    assert len(loaded.problems) == 2
    assert loaded.config.backend.threads == 3
    assert loaded.config.backend.ram == "auto"
    assert loaded.config.ui.theme == "dusk"


def test_yaml_words_for_on_and_off_work(file: Path) -> None:
    assert load(file, "ui:\n  calm: on\n").config.ui.calm == "on"
    assert load(file, "ui:\n  calm: no\n").config.ui.calm == "off"


def test_keys_know_their_lines(file: Path) -> None:
    loaded = load(file, "ui:\n  keys:\n    app.quit: f10\n    chat.stop: f9\n")
    assert loaded.config.ui.keys == {"app.quit": "f10", "chat.stop": "f9"}
    assert loaded.place("ui.keys.chat.stop").endswith("config.yaml:4")


def test_the_environment_wins(file: Path) -> None:
    loaded = load(
        file, "backend:\n  ram: 6\n  threads: 2\n",
        FLASHMOE_BACKEND__RAM="2.5", FLASHMOE_CHAT__SYSTEM_PROMPT="be: short", FLASHMOE_UI__MARKDOWN="false",
        FLASHMOE_MODELS__EXTRA_FOLDERS="/a:/b", FLASHMOE_HOME="/x",
    )  # fmt: skip
    assert loaded.problems == ()
    assert loaded.config.backend.ram == 2.5
    assert loaded.config.backend.threads == 2
    assert loaded.config.chat.system_prompt == "be: short"
    assert loaded.config.ui.markdown is False
    assert loaded.config.models.extra_folders == ("/a", "/b")


def test_a_wrong_variable_is_named(file: Path) -> None:
    loaded = load(file, "", FLASHMOE_BACKEND__RAMM="2", FLASHMOE_BAKEND__RAM="2", FLASHMOE_BACKEND__CTX="x")
    sentences = " ".join(problem.sentence for problem in loaded.problems)
    for words in ("FLASHMOE_BACKEND__RAMM", "did you mean ram", "did you mean BACKEND", "FLASHMOE_BACKEND__CTX"):
        assert words in sentences


def test_what_is_no_text_or_no_file_is_said(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00garbage" * 10)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2 << 20))
    for path, words in ((binary, "UTF-8"), (large, "larger"), (tmp_path, "can't be read")):
        loaded = load_config(path, {})
        assert loaded.config == Config()
        assert words in loaded.problems[0].sentence


HOSTILE = [
    "a: &a [*a]", "? [1]\n: 2", "!!python/object:os.system {}", "{" * 900, "ui: {keys: &a {x: *a}}",
    "backend: {ram: &a [*a]}", "ui: {theme: 2020-99-99}", "ui: {theme: 1:2:3}", "ui: {? {a: 1} : 2}", "<<: [1]",
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=200)
    | st.sampled_from(["a: &a [*a]", "? [1]\n: 2", "!!python/object:os.system {}", "{" * 900])
)
def test_nothing_that_a_user_writes_raises(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", errors="replace")
    assert isinstance(load_config(file, {"FLASHMOE_UI__THEME": text[:50]}).config, Config)
    load_presets(file)


# ---- presets


def test_presets_of_the_user_win_and_inherit(tmp_path: Path) -> None:
    path = tmp_path / "presets.yaml"
    path.write_text(
        "precise:\n  temperature: 0.0\nmine:\n  temperature: 1.2\n  models: 'qwen3.*instruct'\n"
        "bad:\n  temperature: hot\n  modls: x\nworse:\n  models: '('\n"
    )
    presets = load_presets(path)
    assert presets.presets["precise"].sampling.temperature == 0.0
    assert presets.presets["precise"].sampling.top_k == 20
    assert presets.recommended("Qwen3-30B-A3B-Instruct-2507-Q4_K_M").name == "mine"
    problems = [problem.sentence for problem in presets.problems]
    assert any(":7" in p and "hot" in p for p in problems)
    assert any(":8" in p and "did you mean models" in p for p in problems)
    assert any("regular expression" in p for p in problems)


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("Qwen3-30B-A3B-Q4_K_M", "qwen3"),
        ("Qwen3-30B-A3B-Instruct-2507-Q4_K_M", "qwen3-instruct"),
        ("Qwen_Qwen3.6-35B-A3B-Q4_K_M", "qwen3.5"),
        ("Qwen3-Coder-30B-A3B-Instruct-UD-Q4_K_XL", "qwen3-coder"),
        ("gpt-oss-120b-mxfp4-00001-of-00003", "gpt-oss"),
        ("GLM-4.7-Flash-Q4_K", "glm-4.7"),
        ("GLM 4.6", "glm-4.6"),
        ("flashmoe guide", "guide"),
        ("Mixtral-8x7B-Instruct-v0.1", "default"),
    ],
)
def test_auto_takes_what_the_card_recommends(model: str, preset: str, tmp_path: Path) -> None:
    assert load_presets(tmp_path / "none.yaml").pick("auto", model).name == preset


def test_printed_presets_are_valid_presets(tmp_path: Path) -> None:
    before = load_presets(tmp_path / "none.yaml")
    path = tmp_path / "presets.yaml"
    path.write_text(before.as_yaml())
    after = load_presets(path)
    assert after.problems == ()
    assert {n: p.sampling for n, p in after.presets.items()} == {n: p.sampling for n, p in before.presets.items()}
    assert msgspec.structs.asdict(after.recommended("gpt-oss-20b").sampling)["temperature"] == 1.0
