"""A real pretrained model: finetuned on real instructions by the real command, exported, read by plain transformers."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from backbones.registry import get_spec, load_codec
from orchestrator.training.measurement import load_item_scores

ROOT = Path(__file__).parents[1]
KIT = ROOT.parent / "shared" / "kit"
MODEL = KIT / "models" / "stories260K-llama"
pytestmark = pytest.mark.skipif(
    not MODEL.exists(), reason="the kit with real models and data is not beside the checkout"
)

RECIPE: dict[str, Any] = {
    "sequence_length": 256,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "precision": "fp32",
    "optimizer": {"learning_rate": 2e-3, "warmup": 0.1},
    "evaluate": {"every": 1.0},
    "checkpoint": {"every": 1.0},
}


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a finetune of the pretrained model on Dolly ran to its end, by a path beside the spec."""
    folder = tmp_path_factory.mktemp("finetune")
    shutil.copytree(MODEL, folder / "stories")
    rows = [json.loads(line) for line in (KIT / "data/instruct/dolly_hhrlhf_small.jsonl").read_text().splitlines()]
    short = [row for row in rows if len(row["prompt"]) + len(row["response"]) < 330][:160]
    assert len(short) > 80
    write_rows(folder / "train.jsonl", short[24:])
    write_rows(folder / "validation.jsonl", short[:24])
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "format": "prompt_completion"}
    spec = {
        "name": "stories",
        "backbone": "hf:./stories",
        "storage": str(folder / "storage"),
        "recipe": {**RECIPE, "data": data, "budget": {"kind": "steps", "amount": 30}},
        "placement": {"workers": 2},
        "export": {"folder": str(folder / "export"), "register": "stories-assistant"},
    }
    (folder / "finetune.yaml").write_text(yaml.safe_dump(spec))
    finished = run("finetune", folder / "finetune.yaml")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder


def test_a_short_finetune_lowers_held_out_bits_per_byte(finetuned: Path) -> None:
    metrics = the_cell(finetuned)["metrics"]
    assert metrics["val_bits_per_byte"] < 0.9 * metrics["val_bits_per_byte_before"]


def test_the_export_scores_every_held_out_item_as_the_report_says_in_plain_transformers(finetuned: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finetuned / "export", dtype=torch.float32).eval()
    codec = load_codec(get_spec(f"hf:{finetuned / 'stories'}"), max_length=256)
    rows = [json.loads(line) for line in (finetuned / "validation.jsonl").read_text().splitlines()]
    scores = vars(load_item_scores(Path(the_cell(finetuned)["folder"])))

    for item, nats in zip(scores["items"], scores["nats"], strict=True):
        row = rows[item]
        encoded = codec.encode_conversation([("user", row["prompt"].strip()), ("assistant", row["response"].strip())])
        assert len(encoded.input_ids) <= 256  # one window, so that the plain loss below is the same question
        assert abs(plain_nats(model, encoded.input_ids, encoded.is_scored) - nats) < 1e-4 * nats
    total_bytes = sum(len(rows[item]["response"].strip().encode()) for item in scores["items"])
    expected = the_cell(finetuned)["metrics"]["val_bits_per_byte"]
    assert scores["nats"].sum() / math.log(2) / total_bytes == pytest.approx(expected, rel=1e-9)


def test_the_export_generates_with_its_own_tokenizer_and_says_what_it_was_made_from(finetuned: Path) -> None:
    export = finetuned / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForCausalLM.from_pretrained(export).eval()
    prompt = tokenizer("In: Tell me a story.\nOut:", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    manifest = json.loads((export / "training_manifest.json").read_text())
    assert manifest["cell_id"] == the_cell(finetuned)["cell_id"]
    assert manifest["tokenizer_rows"]["total"] == model.get_input_embeddings().weight.shape[0]
    assert not (export / "unfinished").exists()


def test_the_registered_model_points_at_the_export(finetuned: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finetuned / 'storage' / 'mlflow.db'}")
    versions = client.search_model_versions("name = 'stories-assistant'")
    assert [version.source for version in versions] == [(finetuned / "export").as_uri()]
    assert versions[0].run_id == the_cell(finetuned)["mlflow_run_id"]


@pytest.mark.chaos  # `make e2e` reads English with a larger one
def test_real_english_is_far_cheaper_for_the_pretrained_model_than_for_a_random_one(tmp_path: Path) -> None:
    random = tmp_path / "random"
    shutil.copytree(MODEL, random)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaForCausalLM.from_pretrained(MODEL).config).save_pretrained(random)
    lines = [line.strip() for line in (KIT / "data/text/tinyshakespeare.txt").read_text().split("\n\n")]
    texts = [{"text": line} for line in lines if 60 < len(line) < 300]
    write_rows(tmp_path / "train.jsonl", texts[40:80])
    write_rows(tmp_path / "validation.jsonl", texts[:40])
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "format": "text"}
    spec = {
        "name": "english",
        "backbones": [f"hf:{MODEL}", f"hf:{random}"],
        "seeds": 1,
        "storage": str(tmp_path / "storage"),
        "recipe": {**RECIPE, "data": data, "budget": {"kind": "steps", "amount": 1}},
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(spec))
    finished = run("compare", tmp_path / "compare.yaml")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    document = json.loads(next((tmp_path / "storage").glob("english-*/report.json")).read_text())
    pretrained, untrained = (cell["metrics"]["val_bits_per_byte_before"] for cell in document["cells"])
    assert pretrained < 0.8 * untrained
    assert document["verdict"]["outcome"] == "no verdict"
    assert [entry["rank"] for entry in document["ranking"]] == [1, 2]


def run(command: str, spec: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "jobs.cli", command, str(spec)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400)


def the_cell(folder: Path) -> dict[str, Any]:
    document = json.loads(next((folder / "storage").glob("stories-*/report.json")).read_text())
    cell: dict[str, Any] = document["cells"][0]
    return cell


def plain_nats(model: Any, input_ids: list[int], is_scored: list[bool]) -> float:
    """Summed negative log-likelihood of the scored tokens: one item, no batch, no padding."""
    ids = torch.tensor([input_ids])
    with torch.no_grad():
        log_probabilities = model(ids).logits.double().log_softmax(-1)
    each = -log_probabilities[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return float(each[torch.tensor(is_scored[1:])].sum())


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
