"""Backbones from outside this package: the guide's own file, a module, and what can be wrong with a plug-in."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models import make_small_folder

from backbones import BackboneSpec, PluginError, backbone_ids, build, get_spec, load_plugin, registry
from backbones.causal_lm import make_config
from backbones.registered import SPECS

GUIDE = Path(__file__).parents[2] / "docs" / "add-a-backbone.md"
LOADED_ELSEWHERE = """
import sys
from backbones import build, get_spec, load_plugin

load_plugin(sys.argv[1])
backbone = build("my-model-1b", max_length=128)
print(backbone.transformer_layer_cls.__name__, backbone.llm.config.architectures, backbone.pad_token_id)
"""


@pytest.fixture(autouse=True)
def registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    backbone_ids()  # the families, before the copies are made
    before = dict(SPECS)
    monkeypatch.setattr(registry, "_PLUGINS", set(registry._PLUGINS))
    yield
    SPECS.clear()
    SPECS.update(before)


def _family_of_the_guide() -> str:
    """The guide's file as it stands there."""
    [source] = re.findall(r"```python\n# my_family.py\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return str(source)


def _write(folder: Path, name: str, source: str) -> Path:
    path = folder / name
    path.write_text(source, encoding="utf-8")
    return path


def _registers(backbone_id: str) -> str:
    source = f"""
        from dataclasses import replace
        from backbones import get_spec, register
        register(replace(get_spec("tiny-llama2"), backbone_id="{backbone_id}"))
    """
    return "\n".join(line.strip() for line in source.splitlines())


def test_a_file_in_the_folder_that_python_looks_in_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m jobs.compare SPEC --plugin family.py` does from the file's own folder."""
    file = _write(tmp_path, "family_of_this_folder.py", _registers("of-this-folder"))
    monkeypatch.syspath_prepend(tmp_path)
    load_plugin(str(file))
    assert get_spec("of-this-folder").family == "tiny"


def test_the_guides_file_states_what_is_true_of_its_class(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    load_plugin(str(_write(tmp_path, "guide_family.py", _family_of_the_guide())))
    spec = get_spec("my-model-1b")
    assert isinstance(spec, BackboneSpec)
    assert spec.is_pinned
    with torch.device("meta"):
        llm = LlamaForCausalLM._from_config(make_config(spec))
    assert sum(parameter.numel() for parameter in llm.parameters()) == spec.parameters


def test_a_family_in_one_file_is_built_in_another_process(kit: Path, tmp_path: Path) -> None:
    folder = make_small_folder(get_spec("llama3.2-1b"), tmp_path / "model", kit / "tokenizers" / "llama3")
    source = _family_of_the_guide().replace('"my-org/my-model-1b"', repr(str(folder)))
    path = _write(tmp_path, "elsewhere_family.py", source)
    command = [sys.executable, "-c", LOADED_ELSEWHERE, str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=GUIDE.parents[1])
    assert finished.stdout.strip() == "LlamaDecoderLayer ['LlamaForCausalLM'] 128256"


def test_a_plug_in_is_named_from_any_working_directory_and_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, "one_family.py", _registers("from-a-file"))
    monkeypatch.chdir(tmp_path)
    reference = load_plugin("one_family.py")
    assert reference == str(path)
    assert load_plugin("./one_family.py") == load_plugin(reference) == reference
    assert backbone_ids().count("from-a-file") == 1


def test_a_plug_in_may_be_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "module_family.py", _registers("from-a-module"))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugin("module_family") == load_plugin("module_family") == "module_family"
    assert get_spec("from-a-module").family == "tiny"


def test_a_plug_in_file_may_bring_the_class_of_its_backbone(tmp_path: Path) -> None:
    source = f"""
{_registers("with-a-class").replace("with-a-class", 'with-a-class", backbone_cls="class_family:Mine')}

def __getattr__(name):
    from backbones.random_init import RandomInitBackbone

    return type(name, (RandomInitBackbone,), {{"__module__": __name__}})
"""
    load_plugin(str(_write(tmp_path, "class_family.py", source)))
    backbone = build("with-a-class", max_length=64)
    assert (type(backbone).__module__, type(backbone).__name__) == ("class_family", "Mine")


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("no_family.py", "x = 1", "cannot be loaded: ValueError: it registers no backbone; call backbones.register"),
        ("raising_family.py", _registers("half-done") + "\n1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("taken_family.py", _registers("gpt2"), "backbone id 'gpt2' is registered twice; choose another id"),
        ("json.py", _registers("json"), "there already is a module called 'json'; rename the file"),
    ],
)
def test_a_plug_in_that_is_wrong_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, source: str, reason: str
) -> None:
    before = backbone_ids()
    path = _write(tmp_path, name, source)
    with pytest.raises(PluginError, match=re.escape(reason)):
        load_plugin(str(path))
    assert backbone_ids() == before
    with pytest.raises(PluginError, match=re.escape(reason)):  # and again, whatever the first attempt left imported
        load_plugin(str(path))


def test_a_plug_in_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=f"there is no file {tmp_path}/nowhere.py"):
        load_plugin(str(tmp_path / "nowhere.py"))
    with pytest.raises(PluginError, match="plug-in no_such_module cannot be loaded: ModuleNotFoundError"):
        load_plugin("no_such_module")
