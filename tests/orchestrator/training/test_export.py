"""Sharded over two ranks and written as a folder, a pretrained model is still the one that stock transformers loads."""

import json
import multiprocessing
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from gang import RankError, run_ranks
from small_jobs import make_job
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from orchestrator.cell_job import CellJob, ExportRequest, find_export
from orchestrator.layout import EXPORT_UNFINISHED
from orchestrator.parallel import Mesh
from orchestrator.training import export
from orchestrator.training.export import export_model
from orchestrator.training.measurement import ItemScores
from orchestrator.training.trainee import build_trainee

TEXT = "Once upon a time, there was a little cat who lived in a big house."
CLASSES = ["llama", "mistral", "qwen2", "phi3", "gemma"]


def small_export(folder: Path, backbone: str, workers: int) -> CellJob:
    """A job of 512 tokens' context and 32 in the recipe, with an export beside it."""
    job = make_job(folder, backbone, workers=workers, sequence_length=128)
    return replace(job, export=ExportRequest(folder / "export", {"name": "small"}))


def export_on_a_rank(job: CellJob, input_ids: list[int]) -> np.ndarray:
    """The sharded model's logits, before it is exported."""
    trainee = build_trainee(job, Mesh.build(torch.device("cpu"), job.cell.placement.parallel))
    trainee.backbone.llm.eval()
    with torch.no_grad():
        logits: torch.Tensor = trainee.backbone(input_ids=torch.tensor([input_ids])).logits
    one = np.ones(1, np.int64)
    export_model(trainee.backbone, job, ItemScores(one, np.log(2.0) * one, one, one), trainee.mesh)
    return logits[0].numpy()


def logits_in_plain_transformers(folder: Path, input_ids: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([input_ids])).logits
    return logits[0].numpy()


@pytest.mark.parametrize("name", CLASSES)
def test_sharded_logits_are_those_of_stock_transformers_and_so_are_the_exports(
    kit: Path, name: str, tmp_path: Path
) -> None:
    source = kit / "models" / f"stories260K-{name}"
    input_ids = PreTrainedTokenizerFast.from_pretrained(source)(TEXT).input_ids
    job = small_export(tmp_path, f"hf:{source}", workers=2)

    first, second = run_ranks(2, export_on_a_rank, job, input_ids)

    stock = logits_in_plain_transformers(source, input_ids)
    np.testing.assert_allclose(first[:, : stock.shape[1]], stock, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(first, second)
    exported = logits_in_plain_transformers(tmp_path / "export", input_ids)
    np.testing.assert_allclose(exported, first, rtol=0, atol=1e-5)
    # Beside a Qwen2 config AutoTokenizer misreads a tokenizer that is not Qwen2's, in the source as in the export.
    reader: Any = PreTrainedTokenizerFast if name == "qwen2" else AutoTokenizer
    assert reader.from_pretrained(tmp_path / "export", local_files_only=True)(TEXT).input_ids == input_ids


def export_trained_adapters(job: CellJob, input_ids: list[int]) -> np.ndarray:
    """Adapters with values as if they had learned something."""
    trainee = build_trainee(job, Mesh.build(torch.device("cpu"), job.cell.placement.parallel))
    for name, parameter in trainee.backbone.llm.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.constant_(parameter.to_local(), 0.05)  # type: ignore[attr-defined]
    with torch.no_grad():
        logits: torch.Tensor = trainee.backbone.llm.eval()(torch.tensor([input_ids]), use_cache=False).logits
    one = np.ones(1, np.int64)
    export_model(trainee.backbone, job, ItemScores(one, np.log(2.0) * one, one, one), trainee.mesh)
    return logits[0].numpy()


def test_adapters_are_exported_merged_and_alone(kit: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    source = kit / "models" / "stories260K-llama"
    job = make_job(
        tmp_path, f"hf:{source}", workers=2, sequence_length=128, adaptation={"kind": "lora", "rank": 4, "alpha": 16.0}
    )
    job = replace(job, export=ExportRequest(tmp_path / "export", {"name": "small"}))
    input_ids = PreTrainedTokenizerFast.from_pretrained(source)(TEXT).input_ids

    adapted = run_ranks(2, export_trained_adapters, job, input_ids)[0]

    stock = logits_in_plain_transformers(source, input_ids)
    rows = stock.shape[1]
    assert np.abs(adapted[:, :rows] - stock).max() > 0.1, "the adapters do something"
    merged = logits_in_plain_transformers(tmp_path / "export", input_ids)
    np.testing.assert_allclose(merged, adapted, rtol=0, atol=1e-4)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    alone = PeftModel.from_pretrained(model, tmp_path / "export" / "adapter").eval()
    with torch.no_grad():
        logits = alone(torch.tensor([input_ids])).logits[0].numpy()
    np.testing.assert_allclose(logits, adapted[:, :rows], rtol=0, atol=1e-4)
    manifest = json.loads((tmp_path / "export" / "training_manifest.json").read_text())
    assert manifest["adaptation"].startswith("lora: rank 4, alpha 16")


def test_weights_beyond_one_file_are_split_and_indexed(kit: Path, tmp_path: Path) -> None:
    source = kit / "models" / "stories260K-mistral"
    input_ids = PreTrainedTokenizerFast.from_pretrained(source)(TEXT).input_ids
    job = small_export(tmp_path, f"hf:{source}", workers=1)

    logits = run_ranks(1, export_in_small_files, job, input_ids)[0]

    folder = folder_of(job)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    assert not (folder / "model.safetensors").exists()
    np.testing.assert_allclose(logits_in_plain_transformers(folder, input_ids), logits, rtol=0, atol=1e-5)


def export_in_small_files(job: CellJob, input_ids: list[int]) -> np.ndarray:
    export.FILE_BYTES = 300_000
    return export_on_a_rank(job, input_ids)


def export_slowly(job: CellJob, input_ids: list[int]) -> np.ndarray:
    """As on a disk that takes a moment for every file."""

    def save_file(*arguments: Any, **settings: Any) -> None:
        time.sleep(0.2)
        safetensors.torch.save_file(*arguments, **settings)

    export.save_file = save_file  # type: ignore[assignment]
    return export_in_small_files(job, input_ids)


def export_until_killed(job: CellJob) -> None:
    run_ranks(1, export_slowly, job, [1, 2])


def test_an_export_that_is_killed_leaves_nothing_that_loads(kit: Path, tmp_path: Path) -> None:
    source = kit / "models" / "stories260K-llama"
    job = small_export(tmp_path, f"hf:{source}", workers=1)
    folder = folder_of(job)
    run_ranks(1, export_on_a_rank, job, [1, 2])  # an earlier one, which the killed one was to replace
    process = multiprocessing.get_context("spawn").Process(target=export_until_killed, args=(job,))
    process.start()
    while not list((folder / EXPORT_UNFINISHED).glob("model-00003-of-*")):
        assert process.is_alive()
        time.sleep(0.02)

    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.join()

    assert not list(folder.glob("config.json")) and find_export(folder) is None
    for path in (folder, folder / EXPORT_UNFINISHED):
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    logits = run_ranks(1, export_on_a_rank, job, [1, 2])[0]
    np.testing.assert_allclose(logits_in_plain_transformers(folder, [1, 2]), logits, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CellJob:
    """A tiny backbone, exported."""
    job = small_export(tmp_path_factory.mktemp("tiny"), "tiny-qwen", workers=1)
    run_ranks(1, export_on_a_rank, job, [1, 2])
    return job


def folder_of(job: CellJob) -> Path:
    assert job.export is not None
    return job.export.folder


def test_the_manifest_says_what_the_model_is_and_how_to_prompt_it(tiny: CellJob) -> None:
    manifest = json.loads((folder_of(tiny) / "training_manifest.json").read_text())

    cell = tiny.cell
    assert (manifest["cell_id"], manifest["backbone_id"], manifest["seed"]) == (cell.cell_id, "tiny-qwen", cell.seed)
    assert manifest["weights_digest"] == cell.backbone.weights_digest
    assert (manifest["train_hash"], manifest["validation_hash"]) == (cell.train_digest, cell.validation_digest)
    assert manifest["val_bits_per_byte"] == pytest.approx(1.0)
    assert manifest["prompt_format"] == "ChatTemplatePromptBuilder"
    assert manifest["prompt_example"].startswith("<|im_start|>user\nWhat is 2 + 2?")
    assert manifest["tokenizer_rows"]["total"] == 2112
    assert manifest["spec"] == {"name": "small"}
    assert manifest["packages"]["torch"]


def test_the_export_carries_none_of_the_settings_of_training(tiny: CellJob) -> None:
    config = json.loads((folder_of(tiny) / "config.json").read_text())
    assert config["use_cache"] is True
    tokenizer = AutoTokenizer.from_pretrained(folder_of(tiny), local_files_only=True)
    assert tokenizer.model_max_length == tiny.cell.backbone.context_length == 1024
    assert tokenizer.chat_template


def test_whoever_may_read_the_config_may_read_the_weights(tiny: CellJob) -> None:
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder_of(tiny).iterdir()}
    assert len(modes) == 1


def test_an_export_replaces_an_interrupted_one_and_what_an_earlier_one_left(tiny: CellJob, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    (folder / "unfinished").mkdir(parents=True)
    for left in ("unfinished/model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors"):
        (folder / left).write_bytes(b"of another model")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "notes.txt").write_text("a person's own")

    run_ranks(1, export_on_a_rank, replace(tiny, export=ExportRequest(folder, {})), [1, 2])

    expected = {file.name for file in folder_of(tiny).iterdir()} | {"notes.txt"}
    assert {file.name for file in folder.iterdir()} == expected
    assert find_export(folder) == tiny.cell.cell_id


def export_onto_a_full_disk(job: CellJob, input_ids: list[int]) -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    export_on_a_rank(job, input_ids)


def test_a_folder_that_takes_no_weights_is_no_export_and_the_error_names_the_remedy(
    tiny: CellJob, tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    job = replace(tiny, export=ExportRequest(folder, {}))

    with pytest.raises(RankError, match=r"ExportError: cannot write the export .*full: .*make room there"):
        run_ranks(1, export_onto_a_full_disk, job, [1, 2])

    assert find_export(folder) is None
    assert not (folder / "config.json").exists()
    assert os.listdir(folder) == ["unfinished"]
