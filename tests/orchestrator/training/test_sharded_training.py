"""Sharded training equals plain training: the same loss curve for every split of the same global batch.

The plain loop below shares nothing with the engine but the starting weights and the order of the examples: one process,
no FSDP, one example at a time without padding or packing, eager attention, its own loss, clipping and schedule.

Over 300 lines: one loss curve, with everything that it must not depend on.
"""

import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gang import RankError, run_ranks
from small_jobs import curve, entries, make_job
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional

from backbones.adaptation import apply_adaptation, init_adapters
from backbones.inputs import IGNORED
from backbones.registry import build
from orchestrator.attempt.gangs import Gangs
from orchestrator.attempt.stages import run_cell
from orchestrator.cell_job import CellJob
from orchestrator.data.feed import Feed
from orchestrator.data.parity import load_selection
from orchestrator.data.prepare import load_tokenized
from orchestrator.parallel import Mesh
from orchestrator.training.ahead import PreparedSteps
from orchestrator.training.loss import place
from orchestrator.training.measurement import find_measurement
from orchestrator.training.step import accumulate, train_step
from orchestrator.training.trainee import Trainee, build_trainee

TOLERANCE = 1e-5
STEPS = 10
BUDGET = {"kind": "steps", "amount": STEPS}
KIT_MODELS = Path(__file__).parents[3].parent / "shared" / "kit" / "models"

# (workers, micro-batch, accumulation) of a global batch of 8, packed or not, and the backbone.
SPLITS = [
    *((split, packing, "tiny-llama2") for split in [(2, 4, 1), (2, 2, 2), (2, 1, 4)] for packing in (True, False)),
    *((split, packing, "tiny-llama2") for split in [(1, 8, 1), (1, 2, 4)] for packing in (True, False)),
    *(((2, 2, 2), True, backbone) for backbone in ("tiny-mistral", "tiny-qwen")),
    ((1, 2, 4), False, "tiny-qwen"),
]


def plain_curve(job: CellJob) -> tuple[list[float], list[float], list[float]]:
    """Losses and gradient norms of the steps, and held-out bits per byte before and after."""
    recipe = job.cell.recipe
    backbone = build(job.cell.backbone.reference, max_length=256, seed=job.cell.seed, attention="eager")
    apply_adaptation(backbone, recipe.adaptation.kind, recipe.adaptation.lora)
    init_adapters(backbone.llm, job.cell.seed)
    llm = backbone.llm.train()
    learning = {name: weight for name, weight in llm.named_parameters() if weight.requires_grad}
    matrices = [weight for name, weight in learning.items() if weight.ndim > 1]
    vectors = [weight for name, weight in learning.items() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.optimizer.weight_decay}, {"params": vectors}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=recipe.optimizer.betas, weight_decay=0.0)
    data = load_tokenized(job.prepared.train_file)

    def nats(ids: Any, learned: Any) -> torch.Tensor:
        tokens = torch.tensor(ids, dtype=torch.long)
        logits = llm(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        return functional.cross_entropy(logits.float(), tokens[1:], reduction="none")[torch.tensor(learned[1:])].sum()

    losses, norms, scores = [], [], [_plain_bits_per_byte(job, nats)]
    steps = _feed(job).steps()
    for step in range(STEPS):
        examples = [index for row in next(steps).rows for index in row]
        count = sum(int(data.example(index)[1][1:].sum()) for index in examples)
        loss = 0.0
        for index in examples:
            ids, learned, _ = data.example(index)
            share = nats(ids, learned) / count
            share.backward()
            loss += share.item()
        norm = math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in learning.values()))
        for weight in learning.values():
            weight.grad.mul_(min(1.0, recipe.optimizer.max_grad_norm / (norm + 1e-6)))
        share_of_budget = (step + 0.5) / STEPS
        warm_up = recipe.optimizer.warmup
        cosine = (1 + math.cos(math.pi * (share_of_budget - warm_up) / (1 - warm_up))) / 2
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.learning_rate * min(share_of_budget / warm_up, cosine)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        norms.append(norm)
    return losses, norms, [*scores, _plain_bits_per_byte(job, nats)]


def _plain_bits_per_byte(job: CellJob, nats: Callable[[Any, Any], torch.Tensor]) -> float:
    data = load_tokenized(job.prepared.validation_file)
    examples = [data.example(index) for index in range(len(data))]
    with torch.no_grad():
        total = sum(float(nats(ids, scored)) for ids, _, scored in examples)
    return total / math.log(2) / int(data.learnable_bytes.sum())


def _feed(job: CellJob) -> Feed:
    recipe = job.cell.recipe
    kept, _ = load_selection(job.selection_file)
    data = load_tokenized(job.prepared.train_file)
    size = recipe.global_batch_size
    return Feed(data, kept, job.cell.train_digest, job.cell.seed, size, recipe.sequence_length, recipe.packing)


def assert_trained_like_the_plain_loop(job: CellJob, plain: tuple[list[float], list[float], list[float]]) -> None:
    losses, norms, scores = plain
    assert len(curve(job)) == STEPS
    assert max(abs(ours - theirs) for ours, theirs in zip(curve(job), losses, strict=True)) < TOLERANCE
    assert curve(job, "grad_norm") == pytest.approx(norms, rel=1e-4)
    measured = [entry.fields["val_bits_per_byte"] for entry in entries(job, "evaluation")]
    assert measured == pytest.approx(scores, abs=TOLERANCE)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tiny models several times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- Under Ray Train --------------------------------------------------------------------------------------------------


def train_all_and_inspect(config: dict[str, Any]) -> None:
    """Runs on every Ray Train worker: the engine's own function for each job, then a look at a wrapped model."""
    from ray.train.torch import get_device

    for job in config["jobs"]:
        run_cell(job, get_device())
    facts = inspect_wrapped_model(config["jobs"][0])
    file = config["folder"] / f"facts-of-{facts['world']}-rank-{facts['rank']}.json"
    file.write_text(json.dumps(facts))


def inspect_wrapped_model(job: CellJob) -> dict[str, Any]:
    """What kind of things the modules and parameters of a built trainee are, on this rank."""
    import torch  # here, not above: a function that travels by value cannot take the module along

    trainee = build_trainee(job, Mesh.build(torch.device("cpu"), job.cell.placement.parallel))
    llm = trainee.backbone.llm
    decoders = [module for module in llm.modules() if "DecoderLayer" in type(module).__name__]
    units = [module for module in llm.modules() if isinstance(module, FSDPModule)]
    world = trainee.mesh.dims.world
    whole = sum(parameter.numel() for parameter in llm.parameters())
    return {
        "rank": torch.distributed.get_rank(),
        "world": world,
        "every_decoder_layer_is_a_unit": all(isinstance(layer, FSDPModule) for layer in decoders),
        "decoder_layers": len(decoders),
        "configured_layers": llm.config.num_hidden_layers,
        "units": len(units),
        "parameters_are_sharded_tensors": all(
            isinstance(parameter, DTensor) and parameter.placements == (Shard(0),) for parameter in llm.parameters()
        ),
        "share_of_elements_here": sum(p.to_local().numel() for p in llm.parameters()) / whole,
    }


def job_of(folder: Path, split: tuple[int, int, int], packing: bool, backbone: str) -> CellJob:
    workers, micro_batch, accumulation = split
    name = f"{backbone}-{workers}x{micro_batch}x{accumulation}-{'packed' if packing else 'plain'}"
    sizes = {"micro_batch_size": micro_batch, "packing": packing, "budget": BUDGET}
    job = make_job(folder / name, backbone, workers=workers, **sizes)
    assert job.cell.accumulation_steps == accumulation
    return job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def trained(folder: Path, local_ray: None) -> dict[Any, CellJob]:
    """A job for every split, trained by real Ray Train workers; two starts for all of them."""
    from ray import cloudpickle
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    jobs = {key: job_of(folder, *key) for key in SPLITS}
    for workers in (1, 2):
        TorchTrainer(
            train_all_and_inspect,
            train_loop_config={"jobs": [job for key, job in jobs.items() if key[0][0] == workers], "folder": folder},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1.0}),
            run_config=RunConfig(name=f"splits-{workers}", storage_path=str(folder / "ray")),
        ).fit()
    return jobs


@pytest.fixture(scope="module")
def plain(folder: Path) -> Callable[[CellJob], tuple[list[float], list[float], list[float]]]:
    """The plain loop of a job, computed once for all splits of the same batch."""
    known: dict[Any, Any] = {}

    def get(job: CellJob) -> Any:
        recipe = job.cell.recipe
        key = (job.cell.backbone.backbone_id, recipe.packing, recipe.adaptation.kind)
        if key not in known:
            known[key] = plain_curve(job)
        return known[key]

    return get


@pytest.mark.parametrize("key", SPLITS, ids=lambda key: f"{key[2]}-{'x'.join(map(str, key[0]))}-{'packed' * key[1]}")
def test_every_split_of_the_global_batch_has_the_loss_curve_of_a_plain_loop(
    key: Any, trained: dict[Any, CellJob], plain: Callable[[CellJob], Any]
) -> None:
    assert_trained_like_the_plain_loop(trained[key], plain(trained[key]))


@pytest.mark.parametrize("world", [1, 2])
def test_inside_ray_train_workers_every_decoder_layer_is_a_unit_and_every_parameter_a_shard(
    world: int, trained: dict[Any, CellJob], folder: Path
) -> None:
    facts = [json.loads((folder / f"facts-of-{world}-rank-{rank}.json").read_text()) for rank in range(world)]
    for one in facts:
        assert one["every_decoder_layer_is_a_unit"]
        assert one["decoder_layers"] == one["configured_layers"] > 0
        assert one["units"] == one["configured_layers"] + 1
        assert one["parameters_are_sharded_tensors"]
        assert one["share_of_elements_here"] == pytest.approx(1 / world, abs=0.02)


def test_an_attempt_under_ray_train_records_the_contract_and_the_curve_of_a_plain_loop(
    folder: Path, local_ray: None, plain: Callable[[CellJob], Any]
) -> None:
    job = job_of(folder / "attempt", (2, 2, 2), True, "tiny-llama2")

    with Gangs() as gangs:
        assert gangs.run_attempt(job, job.cell.placement) is None

    assert_trained_like_the_plain_loop(job, plain(job))
    measurement = find_measurement(job.folder)
    assert measurement is not None
    contract = measurement.contract
    assert contract["fsdp_units"] == job.cell.backbone.architecture.num_layers + 1
    assert contract["parameter_dtype"] == contract["gradient_dtype"] == contract["reduce_dtype"] == "float32"


# --- On ranks without a cluster: what the loss curve must not depend on, and what it must -----------------------------


def train(job: CellJob) -> None:
    run_cell(job, torch.device("cpu"))


def small(folder: Path, backbone: str = "tiny-llama2", **settings: Any) -> CellJob:
    return make_job(folder, backbone, **{"workers": 2, "micro_batch_size": 2, "budget": BUDGET} | settings)


def test_activation_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    jobs = [small(tmp_path / str(active), activation_checkpointing=active) for active in (True, False)]
    for job in jobs:
        run_ranks(2, train, job)

    recorded = [find_measurement(job.folder).contract["activation_checkpointing"] for job in jobs]  # type: ignore[union-attr]
    assert recorded == [True, False]
    assert curve(jobs[0]) == pytest.approx(curve(jobs[1]), abs=1e-7)


def test_a_bf16_run_computes_in_bf16_and_keeps_everything_else_in_fp32(tmp_path: Path) -> None:
    job, exact = (small(tmp_path / precision, precision=precision) for precision in ("bf16", "fp32"))
    for one in (job, exact):
        run_ranks(2, train, one)

    measurement = find_measurement(job.folder)
    assert measurement is not None
    found = {name: value for name, value in measurement.contract.items() if name.endswith("_dtype")}
    assert found == {
        "parameter_dtype": "float32",
        "compute_dtype": "bfloat16",
        "reduce_dtype": "float32",
        "gradient_dtype": "float32",
        "optimizer_state_dtype": "float32",
    }
    differences = [abs(a - b) for a, b in zip(curve(job), curve(exact), strict=True)]
    assert 1e-5 < max(differences) < 0.05  # computed in another precision, of the same thing


def test_rows_padded_to_the_recipes_length_have_the_losses_and_norms_of_rows_that_are_not(tmp_path: Path) -> None:
    found = run_ranks(2, steps_of_both_widths, small(tmp_path, sequence_length=96))[0]

    longest, fixed = found[None], found[96]
    assert fixed["widths"] == [96] * len(longest["widths"])
    assert min(longest["widths"]) < 96
    assert fixed["losses"] == pytest.approx(longest["losses"], rel=1e-6)
    assert fixed["norms"] == pytest.approx(longest["norms"], rel=1e-5)


def steps_of_both_widths(job: CellJob) -> dict[int | None, dict[str, list[float]]]:
    mesh = Mesh.build(torch.device("cpu"), job.cell.placement.parallel)
    return {width: steps_of_width(replace(build_trainee(job, mesh), row_width=width), job) for width in (None, 96)}


def steps_of_width(trainee: Trainee, job: CellJob) -> dict[str, list[float]]:
    steps = PreparedSteps(trainee, 0, job.cell.micro_batch_size)
    found: dict[str, list[float]] = {"widths": [], "losses": [], "norms": []}
    for work, batches in itertools.islice(steps, 5):
        outcome = train_step(job.cell, trainee, work, 1e-3, batches=batches, meanwhile=steps.prepare)
        trainee.optimizers.zero_grad()
        found["widths"] += [batch.arguments["input_ids"].shape[1] for batch in batches]
        found["losses"].append(outcome.loss)
        found["norms"].append(outcome.grad_norm)
    return found


def test_a_rank_whose_rows_hold_nothing_to_learn_takes_part_in_the_step(tmp_path: Path) -> None:
    silent, alone = run_ranks(2, gradients_of_rank_0, small(tmp_path))[0]

    assert silent == pytest.approx(alone, rel=1e-6)
    assert len(silent) > 10 and all(norm > 0 for norm in silent)


def gradients_of_rank_0(job: CellJob) -> list[list[float]]:
    """Norms of all gradients: where rank 1 has rows without a label, and where it has rank 0's rows, halved."""
    trainee = build_trainee(job, Mesh.build(torch.device("cpu"), job.cell.placement.parallel))
    backbone, rank = trainee.backbone, trainee.mesh.dp_rank
    rows = backbone.collate(trainee.feed.examples([(0, 1), (2,)]))
    found = []
    for labels_BT in (np.full_like(rows.labels_BT, IGNORED), rows.labels_BT):
        batch = replace(rows, labels_BT=rows.labels_BT if rank == 0 else labels_BT)
        accumulate(trainee, [place(backbone, batch, trainee.mesh.device)], targets=1)
        found.append([float(weight.grad.full_tensor().norm()) for weight in trainee.optimizers.learning])  # type: ignore[union-attr]
        trainee.optimizers.zero_grad()
    return [found[0], [norm / 2 for norm in found[1]]]


def test_two_replicas_of_two_shards_have_the_loss_curve_of_a_plain_loop(tmp_path: Path) -> None:
    job = small(tmp_path, workers=4, replicas=2, micro_batch_size=1)

    facts = run_ranks(4, inspect_replicas, job)

    assert facts == [{"placements": ["Replicate", "Shard"], "mesh": [2, 2]}] * 4
    assert_trained_like_the_plain_loop(job, plain_curve(job))


def inspect_replicas(job: CellJob) -> dict[str, Any]:
    trainee = build_trainee(job, Mesh.build(torch.device("cpu"), job.cell.placement.parallel))
    weight = next(trainee.backbone.llm.parameters())
    assert isinstance(weight, DTensor)
    train(job)
    names = [type(placement).__name__.removeprefix("_Strided") for placement in weight.placements]
    return {"placements": names, "mesh": list(weight.device_mesh.shape)}


@pytest.mark.parametrize("backbone", ["tiny-llama2", "tiny-mistral"], ids=["tied", "untied"])
def test_the_last_layer_alone_learns_like_in_a_plain_loop(backbone: str, tmp_path: Path) -> None:
    job = small(tmp_path, backbone, adaptation={"kind": "last_layer"})

    run_ranks(2, train, job)

    assert_trained_like_the_plain_loop(job, plain_curve(job))
    contract = find_measurement(job.folder).contract  # type: ignore[union-attr]
    assert 0 < contract["trainable_parameters"] < contract["parameters"]
    assert contract["fsdp_units"] == job.cell.backbone.architecture.num_layers + 1


def test_adapters_alone_learn_like_in_a_plain_loop(kit: Path, tmp_path: Path) -> None:
    source = f"hf:{kit / 'models' / 'stories260K-phi3'}"
    job = small(tmp_path, source, adaptation={"kind": "lora", "rank": 3, "alpha": 12.0})

    run_ranks(2, train, job)

    assert_trained_like_the_plain_loop(job, plain_curve(job))
    contract = find_measurement(job.folder).contract  # type: ignore[union-attr]
    dims = job.cell.backbone.architecture
    width, kv, wide = dims.hidden_size, dims.num_kv_heads * dims.head_dim, dims.intermediate_size
    shapes = [(width, width + 2 * kv), (width, width), (width, 2 * wide), (wide, width)]  # qkv, o, gate and up, down
    assert contract["trainable_parameters"] == 3 * sum(map(sum, shapes)) * dims.num_layers
    assert contract["adaptation"] == "lora: rank 3, alpha 12, dropout 0, every matrix"
    assert contract["fsdp_units"] == dims.num_layers + 1


@pytest.mark.parametrize("adaptation", [{"kind": "lora", "rank": 4, "dropout": 0.2}, {"kind": "last_layer"}])
def test_a_checkpoint_holds_what_learns_and_resumes_exactly(adaptation: dict[str, Any], tmp_path: Path) -> None:
    whole = small(tmp_path / "whole", adaptation=adaptation, checkpoint={"every": 0.5, "keep": 5})
    run_ranks(2, train, whole)
    parts = small(tmp_path / "parts", adaptation=adaptation, checkpoint={"every": 0.5, "keep": 5})
    shutil.copytree(whole.folder, parts.folder)
    for folder in parts.checkpoint_root.glob(f"step-{STEPS:08d}-*"):
        shutil.rmtree(folder)

    run_ranks(2, train, replace(parts, attempt=2))

    assert curve(parts)[10:] == curve(whole)[10:]
    folder = next(parts.checkpoint_root.glob("step-00000010-*"))
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    weights = {name: one for name, one in stored.items() if name.startswith("model.")}
    contract = find_measurement(parts.folder).contract  # type: ignore[union-attr]
    tied = stored.get("model.lm_head.weight")  # stored under both of its names, once
    twice = math.prod(tied.size) if tied is not None else 0  # type: ignore[union-attr]
    assert sum(math.prod(one.size) for one in weights.values()) - twice == contract["trainable_parameters"]  # type: ignore[union-attr]
    assert contract["trainable_parameters"] < contract["parameters"]


def test_adapters_for_modules_that_do_not_exist_are_refused_with_what_exists(tmp_path: Path) -> None:
    job = small(tmp_path, "tiny-qwen", adaptation={"kind": "lora", "target_modules": ["q_proj", "query"]})

    with pytest.raises(RankError, match=r"AdaptationError: lora: tiny-qwen has no query .* down_proj, gate_proj"):
        run_ranks(2, train, job)


@pytest.mark.parametrize("model", ["stories260K-gemma", "stories260K-phi3", "stories260K-qwen2"])
def test_pretrained_models_of_other_classes_have_the_loss_curve_of_a_plain_loop(model: str, tmp_path: Path) -> None:
    if not KIT_MODELS.is_dir():
        pytest.skip(f"the kit of small pretrained models is not at {KIT_MODELS}")
    job = small(tmp_path, f"hf:{KIT_MODELS / model}")

    run_ranks(2, train, job)

    assert_trained_like_the_plain_loop(job, plain_curve(job))


def test_biases_alone_learn_like_in_a_plain_loop(tmp_path: Path) -> None:
    if not KIT_MODELS.is_dir():
        pytest.skip(f"the kit of small pretrained models is not at {KIT_MODELS}")
    job = small(tmp_path, f"hf:{KIT_MODELS / 'stories260K-qwen2'}", adaptation={"kind": "bias_only"})

    run_ranks(2, train, job)

    assert_trained_like_the_plain_loop(job, plain_curve(job))
    contract = find_measurement(job.folder).contract  # type: ignore[union-attr]
    assert contract["decay_parameters"] == 0
    assert contract["no_decay_parameters"] == contract["trainable_parameters"] > 0


# --- Divergence and the end of a budget -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder in which the byte of a pilcrow has a NaN embedding: an example that holds one has a NaN loss."""
    folder = tmp_path_factory.mktemp("poisoned")
    backbone = build("tiny-mistral", seed=0)
    pilcrow = backbone.codec.encode_text("¶").input_ids[-2]
    with torch.no_grad():
        backbone.llm.get_input_embeddings().weight[pilcrow] = float("nan")
    backbone.llm.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


def poisoned_job(folder: Path, reference: str, **recipe: Any) -> tuple[CellJob, int]:
    """A job that meets the pilcrow in training alone, and the step that does."""
    rare = {"messages": [{"role": "user", "content": "¶ 42?"}, {"role": "assistant", "content": "yes"}]}
    job = small(folder, reference, packing=False, extra_rows=[rare], **recipe)
    rare_index = len(load_tokenized(job.prepared.train_file)) - 1
    for step, work in zip(range(1, 1000), _feed(job).steps(), strict=False):
        if any(rare_index in row for row in work.rows):
            return job, step
    raise AssertionError("the rare example is not in the feed")


def test_a_nan_loss_stops_the_run_and_the_nan_itself_is_in_the_spool(poisoned: str, tmp_path: Path) -> None:
    job, step = poisoned_job(tmp_path, poisoned, budget={"kind": "steps", "amount": 30})

    with pytest.raises(RankError, match=rf"DivergedError.*loss nan and gradient norm nan at step {step}"):
        run_ranks(2, train, job)

    *before, last = curve(job)
    assert len(before) == step - 1 and all(map(math.isfinite, before))
    assert math.isnan(last)
    assert "NaN" in (job.spool_folder / "steps.jsonl").read_text().splitlines()[-1]


def test_the_update_of_a_step_with_a_nan_loss_is_not_made(poisoned: str, tmp_path: Path) -> None:
    job, step = poisoned_job(tmp_path, poisoned)

    assert run_ranks(2, weights_stay_through_a_nan, job, step) == [True, True]


def weights_stay_through_a_nan(job: CellJob, step: int) -> bool:
    trainee = build_trainee(job, Mesh.build(torch.device("cpu"), job.cell.placement.parallel))
    for number, work in zip(range(1, step + 1), trainee.feed.steps(), strict=False):
        before = [parameter.detach().to_local().clone() for parameter in trainee.backbone.llm.parameters()]
        outcome = train_step(job.cell, trainee, work, 1e-3)
        assert math.isfinite(outcome.loss) == (number < step)
        trainee.optimizers.zero_grad()
    after = [parameter.detach().to_local() for parameter in trainee.backbone.llm.parameters()]
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True))


def test_an_attempt_that_finds_the_budget_used_up_measures_what_the_last_one_would_have(tmp_path: Path) -> None:
    job = small(tmp_path, precision="bf16", budget={"kind": "steps", "amount": 3})
    run_ranks(2, train, job)
    first = find_measurement(job.folder)
    (job.folder / "measurement.json").unlink()  # as if the workers had died between checkpoint and measurement

    run_ranks(2, train, replace(job, attempt=2))

    second = find_measurement(job.folder)
    assert first is not None
    assert second is not None
    assert second.contract == first.contract
    assert second.evaluations == first.evaluations
    assert len(curve(job)) == 3
