"""Adapters on backbones that see, trained on two ranks from rows with images: resumed bit for bit, exported merged and
alone, and the same model in plain transformers by the guide's own lines.

One job for each kind of backbone; each test looks at what it left.
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gang import run_ranks
from peft import PeftModel
from pictures import asked, shown, step, write
from PIL import Image as pillow
from safetensors.torch import load_file
from small_jobs import curve, entries, make_job
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from backbones.inputs import Example
from backbones.registry import build, get_spec
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob, ExportRequest
from orchestrator.data.images.files import resized
from orchestrator.planning.modalities import tokens_of_an_image
from orchestrator.planning.plan import load_finetune
from orchestrator.training.export import ADAPTER

CPU = torch.device("cpu")
GUIDE = Path(__file__).parents[3] / "docs" / "finetune.md"
STEPS = 8
LORA = {"kind": "lora", "rank": 4, "dropout": 0.1}
QUESTION = "What colour is it?"
SPLITS = {"train": range(48), "validation": range(100, 109)}


@dataclass(frozen=True)
class Trained:
    """A job that ended, what its second half gave in another attempt, and the backbone that it began with."""

    job: CellJob
    again: CellJob
    base: Path  # a folder

    @property
    def export(self) -> Path:
        assert self.job.export is not None
        return self.job.export.folder


def adapting(folder: Path, base: Path, data: dict[str, str]) -> CellJob:
    recipe = {"adaptation": LORA, "budget": {"kind": "steps", "amount": STEPS}, "sequence_length": 96, "data": data}
    job = make_job(folder / "job", f"hf:{base}", workers=2, checkpoint={"every": 0.5, "keep": 2}, **recipe)
    return replace(job, export=ExportRequest(folder / "export", {"name": "adapted"}))


def second_half(job: CellJob, folder: Path) -> CellJob:
    """Another attempt, which finds the checkpoint in the middle alone, as after a kill."""
    again = replace(job, folder=folder / "again", attempt=2, export=ExportRequest(folder / "export-again", {}))
    half, _ = sorted(job.checkpoint_root.iterdir())
    shutil.copytree(half, again.checkpoint_root / half.name)
    return again


def run_all(jobs: list[CellJob]) -> None:
    for job in jobs:
        run_cell(job, CPU)


def save(folder: Path, backbone_id: str) -> Path:
    """A random backbone as a folder that a user brings."""
    backbone = build(backbone_id, seed=5)
    for part in (backbone.llm, backbone.tokenizer, backbone.image_processor):
        assert part is not None
        part.save_pretrained(folder)
    return folder


def talking_job(folder: Path) -> tuple[CellJob, Path]:
    """A vision-language model of a folder, on conversations."""
    base = save(folder / "base", "tiny-smolvlm")
    data = {}
    for split, numbers in SPLITS.items():
        rows = [asked(f"{QUESTION} {number}", images=[shown(folder, number)]) for number in numbers]
        data[split] = str(write(folder / f"seen-{split}.jsonl", rows))
    return adapting(folder, base, data), base


def acting_job(folder: Path) -> tuple[CellJob, Path]:
    """A fused backbone of a folder, on a robot's steps."""
    base = save(folder / "base", "fused:tiny-dinosiglip+tiny-llama2")
    data = {"format": "actions"}
    for split, numbers in SPLITS.items():
        data[split] = str(write(folder / f"steps-{split}.jsonl", [step(folder, number) for number in numbers]))
    return adapting(folder, base, data), base


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Each job whole, then its second half in new processes."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("talking", "acting")}
    made = {"talking": talking_job(folders["talking"]), "acting": acting_job(folders["acting"])}
    run_ranks(2, run_all, [job for job, _ in made.values()])
    again = {name: second_half(job, folders[name]) for name, (job, _) in made.items()}
    run_ranks(2, run_all, list(again.values()))
    return {name: Trained(job, again[name], base) for name, (job, base) in made.items()}


@pytest.fixture
def talking(both: dict[str, Trained]) -> Trained:
    return both["talking"]


@pytest.fixture
def acting(both: dict[str, Trained]) -> Trained:
    return both["acting"]


@pytest.fixture(params=["talking", "acting"])
def trained(both: dict[str, Trained], request: pytest.FixtureRequest) -> Trained:
    return both[request.param]


def test_the_second_half_is_the_same_after_a_kill_bit_for_bit(trained: Trained) -> None:
    (resumed,) = [one.fields for one in entries(trained.again, "phase") if one.fields["phase"] == "resumed"]
    assert (resumed["step"], resumed["compared"]) == (STEPS // 2, f"the rows of steps 2 to {STEPS // 2 + 1}")
    for metric in ("loss", "grad_norm", "bytes_seen"):
        assert curve(trained.again, metric) == curve(trained.job, metric)[STEPS // 2 :]
    for file in ("model.safetensors", f"{ADAPTER}/adapter_model.safetensors"):
        assert trained.again.export is not None
        assert (trained.export / file).read_bytes() == (trained.again.export.folder / file).read_bytes()


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """transformers names the tensors of a SigLIP tower in either of two ways."""
    named = load_file(folder / "model.safetensors")
    return {re.sub(r"(vision_towers\.\d)\.vision_model", r"\1", name): tensor for name, tensor in named.items()}


def test_adapters_alone_learn_and_none_is_on_a_tower_or_connector(trained: Trained) -> None:
    before, after = stored(trained.base), stored(trained.export)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    adapters = load_file(trained.export / ADAPTER / "adapter_model.safetensors")
    adapted = {re.sub(r"^base_model\.model\.(.*)\.lora_[AB]\.weight$", r"\1.weight", name) for name in adapters}

    assert changed == adapted
    assert all(re.search(r"(text_model|language_model)\..*layers\.\d", name) for name in changed)
    contract = json.loads((trained.job.folder / "contract.json").read_text())
    assert contract["trainable_parameters"] == sum(tensor.numel() for tensor in adapters.values())


def example_of(folder: Path) -> tuple[Any, Example]:
    """The exported backbone as the product builds it, and a question with a picture as its pipeline would make it."""
    backbone: Any = build(get_spec(f"hf:{folder}"), compute_dtype=torch.float32)
    backbone.llm.eval()
    ids = np.array(backbone.codec.encode_prompt([("user", QUESTION)], [1]))
    square = resized(np.asarray(drawn()), backbone.vision.image_size, backbone.vision.resample)
    return backbone, Example(ids, np.zeros(len(ids), np.bool_), square[None])


def drawn() -> pillow.Image:
    return pillow.fromarray(np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def last_logits(llm: Any, **arguments: Any) -> np.ndarray:
    with torch.no_grad():
        logits: torch.Tensor = llm(**arguments).logits
    return logits[0, -1].numpy()


def test_the_guides_finetune_is_a_plan_on_a_tiny_id(tmp_path: Path) -> None:
    [spec] = re.findall(r"```yaml\n# my-eyes.yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "seen").mkdir()
    for split, number in (("train", 1), ("held_out", 2)):
        write(tmp_path / "seen" / f"{split}.jsonl", [asked(QUESTION, image=shown(tmp_path / "seen", number))])
    (tmp_path / "my-eyes.yaml").write_text(spec.replace("smolvlm2-2.2b", "tiny-smolvlm"))

    (cell,) = load_finetune(tmp_path / "my-eyes.yaml").cells
    assert cell.recipe.adaptation.kind == "lora"
    real = get_spec("smolvlm2-2.2b").vision
    assert real is not None
    assert f"one image takes {tokens_of_an_image(real)} tokens" in spec


def test_the_guides_lines_ask_an_export_what_it_was_trained_to_be_asked(
    talking: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    lines, call = re.findall(r"```python\n# (?:ask_an_export|in_one_call).py\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "my-eyes").symlink_to(talking.export)
    (tmp_path / "frames").mkdir()
    drawn().save(tmp_path / "frames" / "000.png")
    monkeypatch.chdir(tmp_path)

    said: dict[str, Any] = {}
    exec(compile(lines, "ask_an_export.py", "exec"), said)

    backbone, example = example_of(talking.export)
    assert said["asked"]["input_ids"].tolist() == [example.input_ids.tolist()]
    ours = last_logits(backbone, **backbone.collate([[example]]).on(CPU).arguments)
    theirs = last_logits(said["model"], **said["asked"], **said["seen"])
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
    first = int(said["ids"][0, len(example.input_ids)])
    assert first == int(ours[: backbone.effective_vocab_size].argmax())
    assert isinstance(said["answer"], str)

    answered = said["ids"]
    exec(compile(call, "in_one_call.py", "exec"), said)
    assert said["both"]["input_ids"].tolist() == said["asked"]["input_ids"].tolist()
    assert torch.equal(said["ids"], answered)


def test_a_fused_export_is_asked_in_plain_transformers_with_its_placeholders_behind_the_first_id(
    acting: Trained,
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(acting.export, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(acting.export)
    manifest = json.loads((acting.export / "training_manifest.json").read_text())
    first, *others = tokenizer(
        manifest["prompt_with_image"].replace("{question}", QUESTION), add_special_tokens=False
    ).input_ids
    ids = [first, *[model.config.image_token_id] * manifest["vision"]["tokens_per_image"], *others]
    seen = AutoImageProcessor.from_pretrained(acting.export, backend="pil")(drawn(), return_tensors="pt")

    backbone, example = example_of(acting.export)
    assert ids == example.input_ids.tolist()
    ours = last_logits(backbone, **backbone.collate([[example]]).on(CPU).arguments)
    theirs = last_logits(model, input_ids=torch.tensor([ids]), **seen)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


def test_the_adapter_alone_makes_the_exported_model_of_its_base(talking: Trained) -> None:
    backbone, example = example_of(talking.export)
    arguments = backbone.collate([[example]]).on(CPU).arguments
    base = AutoModelForImageTextToText.from_pretrained(talking.base, dtype=torch.float32)
    before = last_logits(base.eval(), **arguments)
    adapted = PeftModel.from_pretrained(base, talking.export / ADAPTER).eval()

    merged = last_logits(backbone, **arguments)
    assert np.abs(before - merged).max() > 1e-3
    np.testing.assert_allclose(last_logits(adapted, **arguments), merged, rtol=0, atol=1e-4)
