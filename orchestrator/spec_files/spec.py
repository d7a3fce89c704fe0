"""The nouns that people write: strict, frozen, checked at the border. No torch, ray, mlflow.

A spec file is a `Comparison` or a `Finetune`; both resolve to `Cell`s that share one `Recipe` and one `Placement`.
Over 300 lines: this one file is what people write, whole, in the order of the published schema.
"""

import math
import re
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from backbones.adaptation import VISION_KINDS, Lora, VisionMode
from orchestrator.parallel import ParallelDims
from orchestrator.tracking.tracker import find_tracker

MAX_SEEDS = 1000
MAX_TRIALS = 64
MAX_CHUNK = 1000
LONGEST_TIMEOUT_S = 366 * 86400
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

Item = TypeVar("Item", str, int, float)


def _check_name(name: str) -> str:
    if not re.fullmatch(_NAME, name, re.ASCII):
        raise ValueError("use up to 64 letters, digits, '.', '_' and '-', and begin with a letter or a digit")
    return name


def _is_none(value: object) -> bool:
    return value is None


def _amount_or_ladder(schema: dict[str, Any]) -> None:
    """Of a budget: pydantic's own schema would ask for both."""
    schema["required"] = [name for name in schema.get("required", []) if name != "amount"]
    schema["anyOf"] = [{"required": ["amount"]}, {"required": ["ladder"]}]


Name = Annotated[str, Field(json_schema_extra={"pattern": f"^{_NAME}$"}), AfterValidator(_check_name)]
Count = Annotated[int, Field(gt=0, le=1_000_000)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# fmt: off
RowKey = Literal[
    "messages", "prompt", "completion", "response", "text", "conversations", "instruction", "input", "output", "group",
    "action", "episode", "step", "image", "images",
]
# fmt: on


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; instances are immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Actions(Strict):
    """How a robot's actions are scaled to [-1, 1] before they become tokens, and how many are an answer.

    mask: true for each dimension that is scaled by the percentiles of training data, false for one that stays as it is,
    such as a gripper's; auto: OpenVLA's rule for 7 and 10 dimensions, all but the last; without, all are scaled.
    chunk: the actions of a row and of the rows that follow it in its episode, predicted at once.
    """

    mask: Literal["auto"] | Annotated[tuple[bool, ...], Field(min_length=1)] | None = Field(None, exclude_if=_is_none)
    chunk: Annotated[int, Field(ge=1, le=MAX_CHUNK)] = Field(1, exclude_if=(1).__eq__)

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("it says nothing; write mask, chunk or both, or remove it")
        return self


class Data(Strict):
    """Where examples come from: a file (JSONL, Parquet, CSV, a JSON array, text), a folder of some, `builtin:stdlib`,
    or `hf-dataset:ORG/NAME@REVISION#SPLIT`.

    columns: the names that rows have where they are not those of the format, such as {prompt: question}.
    actions: where a robot's are not all scaled alike, or several are predicted at once.
    """

    train: str = Field(min_length=1)
    validation: str = Field(min_length=1)
    format: Literal["messages", "prompt_completion", "text", "sharegpt", "alpaca", "actions"] = "messages"
    columns: dict[RowKey, str] | None = Field(None, min_length=1, exclude_if=_is_none)
    parity: Literal["intersection", "per_backbone"] = "intersection"
    actions: Actions | None = Field(None, exclude_if=_is_none)

    @field_validator("actions")
    @classmethod
    def _check_actions_only(cls, actions: Actions | None, info: ValidationInfo) -> Actions | None:
        if actions is not None and info.data.get("format", "actions") != "actions":
            raise ValueError("it belongs to format actions only; remove it")
        return None if actions is not None and actions == Actions(mask=None) else actions

    @property
    def chunk(self) -> int:
        """Actions of an answer."""
        return 1 if self.actions is None else self.actions.chunk


class Budget(Strict):
    """How long a cell trains. Learning-rate schedule and evaluation follow the share of it that is used up.

    bytes: UTF-8 bytes of learnable text; tokens: input tokens without padding; flops: 6N + 12LHS per token; gpu_hours:
    hours in optimizer steps times workers, whatever they run on; two runs do not end at the same step.
    ladder: instead of an amount several, of a comparison at each; the largest is `amount`.
    """

    model_config = ConfigDict(json_schema_extra=_amount_or_ladder)

    kind: Literal["bytes", "tokens", "steps", "flops", "gpu_hours"] = "bytes"
    amount: float = Field(gt=0)
    ladder: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, min_length=2, max_length=16, exclude_if=_is_none
    )

    @model_validator(mode="before")
    @classmethod
    def _take_largest(cls, written: Any) -> Any:
        """What is no ladder is left for the fields to refuse."""
        ladder = written.get("ladder") if isinstance(written, dict) else None
        if not isinstance(ladder, list):
            return written
        numbers = [one for one in ladder if isinstance(one, int | float) and not isinstance(one, bool) and one > 0]
        return {"amount": max(numbers, default=1.0), **written, "ladder": tuple(ladder)}

    @field_validator("amount")
    @classmethod
    def _check_amount(cls, amount: float, info: ValidationInfo) -> float:
        if info.data.get("kind") == "steps" and amount != int(amount):
            raise ValueError("steps are counted whole; round it")
        return amount

    @field_validator("ladder")
    @classmethod
    def _check_ladder(cls, ladder: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        """Rising."""
        if ladder is None:
            return None
        if info.data.get("kind") == "steps" and any(amount != int(amount) for amount in ladder):
            raise ValueError("steps are counted whole; round them")
        if "amount" in info.data and info.data["amount"] != max(ladder):
            raise ValueError("there is an amount beside it; leave out either of them")
        return tuple(sorted(_distinct(ladder)))

    @property
    def is_timed(self) -> bool:
        """Whether a clock says when it is used up."""
        return self.kind == "gpu_hours"

    @property
    def each(self) -> tuple["Budget", ...]:
        """A budget for each amount of the ladder, rising; itself where there is none."""
        return tuple(Budget(kind=self.kind, amount=amount) for amount in self.ladder) if self.ladder else (self,)


class Optimizer(Strict):
    """AdamW with decoupled weight decay on matrices only, warm-up, then the schedule, then clipping."""

    # Names the builder in training/model/optimizer.py. A key added later leaves every cell_id as it is only if a dump
    # leaves out its default: Field("adamw", exclude_if="adamw".__eq__).
    kind: ClassVar[str] = "adamw"
    title: ClassVar[str] = "AdamW"  # for people
    state_bytes: ClassVar[float] = 8  # of each learning parameter: two fp32 moments

    learning_rate: float = Field(2e-5, gt=0, lt=10)
    weight_decay: float = Field(0.1, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = Field(0.03, ge=0, lt=1)  # share of the budget
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: float = Field(1.0, gt=0)

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each of the two must be at least 0 and below 1, such as [0.9, 0.95]")
        return betas


class Adaptation(Strict):
    """Which parameters learn. What lora leaves open: rank 16, alpha twice the rank, no dropout, every matrix.

    Of a backbone that sees, `full` is the language model and the connector, `connector` the latter alone; with `vision`
    full its towers learn too. OpenVLA's stages: align is connector; vla-train is full; vla-full-train is full with
    vision full; last-layer is last_layer; vla-sandwich-train is last_layer with vision full.
    """

    kind: Literal["full", "last_layer", "bias_only", "lora", "connector"] = "full"
    rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    alpha: Annotated[float, Field(gt=0, le=65536)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    vision: VisionMode = Field("frozen", exclude_if="frozen".__eq__)

    @field_validator("vision")
    @classmethod
    def _check_vision(cls, vision: VisionMode, info: ValidationInfo) -> VisionMode:
        if vision == "full" and info.data.get("kind", "full") not in VISION_KINDS:
            raise ValueError(
                f"towers learn under {' and '.join(VISION_KINDS)} only; set kind to one of them, or remove it"
            )
        return vision

    @field_validator("rank", "alpha", "dropout", "target_modules")
    @classmethod
    def _check_lora_only(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("kind", "lora") != "lora":
            raise ValueError("it belongs to kind lora only; remove it")
        return value

    @property
    def is_partial(self) -> bool:
        """Whether parameters of the backbone stay as they are."""
        return self.kind != "full"

    @property
    def lora(self) -> Lora | None:
        """The adapters' settings with every default in place; None for the other kinds."""
        if self.kind != "lora":
            return None
        rank = self.rank or Lora.rank
        return Lora(rank, self.alpha or 2.0 * rank, self.dropout or 0.0, self.target_modules)

    @property
    def summary(self) -> str:
        """In words, for records and reports."""
        if self.lora is None:
            return self.kind if self.vision == "frozen" else f"{self.kind}, vision too"
        modules = ", ".join(self.lora.target_modules or ("every matrix",))
        return f"lora: rank {self.lora.rank}, alpha {self.lora.alpha:g}, dropout {self.lora.dropout:g}, {modules}"


class Rollouts(Strict):
    """Episodes that the trained model plays in a simulator, the same ones for every candidate.

    environment: such as minigrid:BabyAI-GoToLocal-v0. seed: decides which episodes; those of demonstrations are others.
    max_steps: an episode that has not succeeded by then failed, where the environment's own limit is larger.
    execute: how many actions of a chunk are taken before the model looks again; without, all of them.
    every: below 1 they are also played before training and after every share of the budget, as a curve of success.
    """

    environment: Annotated[str, Field(min_length=1)]
    episodes: Annotated[int, Field(ge=1, le=100_000)] = 50
    seed: Seed = 0
    every: Fraction = Field(1.0, exclude_if=(1.0).__eq__)
    max_steps: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, exclude_if=_is_none)
    execute: Annotated[int, Field(ge=1, le=MAX_CHUNK)] | None = Field(None, exclude_if=_is_none)


class Generation(Strict):
    """Answers that the trained model writes, greedily, to held-out instructions, beside what it is scored on.

    exact_match: the same text; contains: the reference occurs in it; f1: of their words.
    """

    items: Annotated[int, Field(ge=1, le=100_000)]  # evenly spaced over the held-out data
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 128
    metrics: Annotated[tuple[Literal["exact_match", "contains", "f1"], ...], Field(min_length=1)] = (
        "exact_match",
        "f1",
    )

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, metrics: tuple[Any, ...]) -> tuple[Any, ...]:
        return _distinct(metrics)


class Evaluate(Strict):
    """When held-out bits per byte are measured: before training, then every share of the budget, then at the end.

    tasks: of lm-evaluation-harness, which the trained model is asked at the end; include_path: a folder with their YAML
    where they are your own. generation: held-out instructions that it answers then. rollouts: episodes in a simulator,
    where actions are learned. None of these is part of a cell's identity: nothing is trained anew for another task.
    """

    every: Fraction = 0.1
    tasks: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    include_path: Annotated[str, Field(min_length=1)] | None = Field(None, exclude_if=_is_none)
    rollouts: Rollouts | None = Field(None, exclude_if=_is_none)
    generation: Generation | None = Field(None, exclude_if=_is_none)

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(tasks)

    @field_validator("include_path")
    @classmethod
    def _check_include_path(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("tasks") == ():
            raise ValueError("it is where tasks are defined, and there are none; name them in tasks, or remove it")
        return path


class Checkpointing(Strict):
    """A resumable checkpoint every share of the budget; the newest `keep` and the best scored one are kept."""

    every: Fraction = 0.1
    keep: Count = 2


class Recipe(Strict):
    """Everything that is held constant across the cells of a comparison."""

    data: Data
    sequence_length: Annotated[int, Field(ge=8, le=10_000_000)] = 2048
    global_batch_size: Count = 64  # examples, or packed sequences when packing is on
    micro_batch_size: Literal["auto"] | Count = "auto"
    packing: bool = True
    budget: Budget
    optimizer: Optimizer = Optimizer()
    adaptation: Adaptation = Adaptation()
    precision: Literal["bf16", "fp32"] = "bf16"
    attention: Literal[
        "auto", "eager", "sdpa", "varlen", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = "auto"
    activation_checkpointing: bool | Literal["auto", "selective"] = (
        True  # selective keeps what matrices and kernels give
    )
    compile: Literal["auto", "layers", "none"] = Field("auto", exclude_if="auto".__eq__)
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpointing = Checkpointing()


class RateGrid(Strict):
    """So many learning rates, each a constant factor above the one before."""

    low: float = Field(gt=0, lt=10)
    high: float = Field(gt=0, lt=10)
    trials: Annotated[int, Field(ge=2, le=MAX_TRIALS)]

    @field_validator("high")
    @classmethod
    def _check_high(cls, high: float, info: ValidationInfo) -> float:
        if high <= info.data.get("low", 0):
            raise ValueError(f"it must be above tuning.learning_rate.low, which is {info.data['low']:g}")
        return high

    @property
    def rates(self) -> tuple[float, ...]:
        factor = (self.high / self.low) ** (1 / (self.trials - 1))
        return tuple(float(f"{self.low * factor**n:.3g}") for n in range(self.trials))


class Tuning(Strict):
    """Every backbone gets the same trials, and trains with the learning rate that was best for it.

    A trial is a short run with a whole schedule, scored on training data that is kept from all trials. Of each rung the
    better half goes on to the next, with twice the budget, until one is left or the rungs are used up; those of the
    last have `budget_fraction` of the recipe's budget.
    """

    learning_rate: Annotated[tuple[Annotated[float, Field(gt=0, lt=10)], ...], Field(min_length=2)] | RateGrid
    budget_fraction: Fraction = 0.2
    rungs: Annotated[int, Field(ge=1, le=8)] = 2

    @field_validator("learning_rate")
    @classmethod
    def _check_rates(cls, rates: tuple[float, ...] | RateGrid) -> tuple[float, ...] | RateGrid:
        if isinstance(rates, RateGrid):
            if len(set(rates.rates)) < rates.trials:
                raise ValueError("so many trials between low and high are equal to three digits; use fewer")
            return rates
        if len(rates) > MAX_TRIALS:
            raise ValueError(f"a backbone has at most {MAX_TRIALS} trials; use fewer")
        return tuple(sorted(_distinct(rates)))

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the first rung, rising."""
        return self.learning_rate.rates if isinstance(self.learning_rate, RateGrid) else self.learning_rate

    @property
    def rung_sizes(self) -> tuple[int, ...]:
        """Trials of a backbone in each rung."""
        sizes = [len(self.rates)]
        while len(sizes) < self.rungs and sizes[-1] > 2:
            sizes.append((sizes[-1] + 1) // 2)
        return tuple(sizes)

    def budget(self, whole: Budget, rung: int) -> Budget:
        """Of a trial of a rung, counted from 0; `whole` is a full run's."""
        amount = whole.amount * self.budget_fraction / 2 ** (len(self.rung_sizes) - 1 - rung)
        return Budget(kind=whole.kind, amount=float(math.ceil(amount)) if whole.kind == "steps" else amount)


class Elastic(Strict):
    """As many workers as the cluster's nodes can hold, within bounds; the global batch stays as it is."""

    min: Count
    max: Count

    @field_validator("max")
    @classmethod
    def _check_max(cls, largest: int, info: ValidationInfo) -> int:
        if largest < info.data.get("min", largest):
            raise ValueError(f"it must be at least placement.workers.min, which is {info.data['min']}")
        return largest


class Placement(Strict):
    """Where a cell runs: Ray Train workers and what each of them holds."""

    # Keys that no schema has, each with what to say to those who write it.
    refused: ClassVar[dict[str, str]] = {
        name: f"{name} parallelism is not available, workers are replicas of shards; remove it, and raise "
        "placement.workers where a model does not fit"
        for name in ("tensor", "context")
    }

    workers: Count | Elastic = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    cpus_per_worker: Count = 1
    accelerator: str | None = None
    replicas: Count = 1  # above 1: HSDP, parameters are sharded over workers / replicas ranks

    @field_validator("accelerator")
    @classmethod
    def _check_accelerator(cls, accelerator: str | None, info: ValidationInfo) -> str | None:
        if accelerator is not None and info.data.get("gpus_per_worker") == 0:
            raise ValueError("a worker without a GPU has none; set gpus_per_worker: 1, or remove it")
        return accelerator

    @field_validator("replicas")
    @classmethod
    def _check_replicas(cls, replicas: int, info: ValidationInfo) -> int:
        workers = info.data.get("workers", replicas)
        if isinstance(workers, Elastic):
            if workers.max < replicas:
                raise ValueError(f"at most {workers.max} workers cannot form so many groups; lower it")
        elif workers % replicas:
            raise ValueError(
                f"{workers} workers cannot form that many equal groups; use a divisor of placement.workers"
            )
        return replicas

    @property
    def parallel(self) -> ParallelDims:
        """How the workers share a cell: replicas of shards. Of an elastic placement only once it is `on` a number."""
        assert not isinstance(self.workers, Elastic), "an elastic placement has as many workers as an attempt gets"
        return ParallelDims(replicate=self.replicas, shard=self.workers // self.replicas)

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers is decided when an attempt begins."""
        return isinstance(self.workers, Elastic)

    @property
    def most(self) -> int:
        """The most workers that it may have."""
        return self.workers.max if isinstance(self.workers, Elastic) else self.workers

    @property
    def fewest(self) -> int:
        """The fewest that it may have."""
        return self.workers.min if isinstance(self.workers, Elastic) else self.workers

    @property
    def number(self) -> str:
        """Of workers, in words."""
        return f"{self.fewest} to {self.most}" if self.is_elastic else f"{self.most}"

    def worlds(self, global_batch_size: int) -> tuple[int, ...]:
        """How many workers it may have, the most first: equal groups that share the global batch equally."""
        numbers = range(self.most, self.fewest - 1, -1)
        return tuple(n for n in numbers if global_batch_size % n == 0 and n % self.replicas == 0)

    def on(self, workers: int) -> "Placement":
        """The same with that many workers."""
        return self.model_copy(update={"workers": workers})


class Tracking(Strict):
    """Where MLflow is; `uri` falls back to MLFLOW_TRACKING_URI, then to SQLite in the storage folder."""

    uri: str | None = None
    experiment: str = Field("backbones", min_length=1)

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri is not None and find_tracker(uri) is None:
            raise ValueError("write a URL such as http://mlflow:5000 or sqlite:////shared/mlflow.db")
        return uri


class Constraints(Strict):
    """What a backbone must be to be ranked. One of which it is not known does not pass.

    memory_gib: at most so much on a device, as measured in training. tokens_per_second: at least so many a device, in
    training. context: at least so many tokens. licence: one of these, as `backbone list` names them.
    """

    memory_gib: Annotated[float, Field(gt=0)] | None = Field(None, exclude_if=_is_none)
    tokens_per_second: Annotated[float, Field(gt=0)] | None = Field(None, exclude_if=_is_none)
    context: Count | None = Field(None, exclude_if=_is_none)
    licence: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = Field(
        None, exclude_if=_is_none
    )


class VerdictRule(Strict):
    """Two-sided `alpha` of every claim, and the relative `margin` inside which two backbones are a tie.

    max_seeds: the most seeds that there will be, declared before the first look; the looks up to it share alpha.
    metric: bits_per_byte of all held-out text; item_bits_per_byte, in whose mean every held-out item counts alike; or
    rollout_success, the share of the episodes of evaluate.rollouts that do not fail.
    """

    alpha: float = Field(0.05, ge=1e-6, lt=0.5)
    margin: float = Field(0.005, gt=0, lt=1)
    max_seeds: Annotated[int, Field(ge=2, le=MAX_SEEDS)] | None = Field(None, exclude_if=_is_none)
    metric: Literal["bits_per_byte", "item_bits_per_byte", "rollout_success"] = Field(
        "bits_per_byte", exclude_if="bits_per_byte".__eq__
    )
    constraints: Constraints = Constraints()


class Policy(Strict):
    """How the job layer treats the cells; never part of their identity."""

    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    preemptible: bool = True
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    timeout: str = "12h"  # of one cell, while it trains
    # How long a step may take before its workers count as hanging; auto: 20 of the slowest recent step, at least 2m.
    hang_timeout: str = "auto"
    # Limits of all cells together, which the cluster's queue keeps to; hours since the first of them began.
    gpu_hours: Annotated[float, Field(gt=0, le=1e9)] | None = None
    hours: Annotated[float, Field(gt=0, le=1e6)] | None = None

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, text: str) -> str:
        seconds(text)
        return text

    @field_validator("hang_timeout")
    @classmethod
    def _check_hang_timeout(cls, text: str) -> str:
        if text != "auto":
            seconds(text)
        return text

    @property
    def timeout_s(self) -> float:
        return seconds(self.timeout)

    @property
    def hang_timeout_s(self) -> float | None:
        """None: derived from how long steps take."""
        return None if self.hang_timeout == "auto" else seconds(self.hang_timeout)


class Price(Strict):
    """What an hour costs, so that reports and plans tell money too; never part of a cell's identity.

    per_gpu_hour: of a GPU and what comes with it. per_core_hour: of a CPU core, where workers have no GPU.
    """

    per_gpu_hour: Annotated[float, Field(gt=0, le=1e6)] | None = None
    per_core_hour: Annotated[float, Field(gt=0, le=1e6)] | None = None
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if self.per_gpu_hour is None and self.per_core_hour is None:
            raise ValueError("give per_gpu_hour, or per_core_hour where workers have no GPU")
        return self


class Job(Strict, ABC):
    """What comparisons and finetunes have in common."""

    # What planning puts in the place of a wrong required value, to go on looking for problems.
    stand_ins: ClassVar[dict[str, Any]] = {
        "name": "unnamed",
        "recipe.data": {"train": "-", "validation": "-"},
        "recipe.budget": {"amount": 1},
    }

    # What the job layer asks of a job, whatever its kind.
    kind: ClassVar[str]
    in_turn: ClassVar[bool] = False  # one cell at a time, as where speed is measured
    cell_role: ClassVar[str] = "cell"  # what MLflow calls the run of a cell

    name: Name
    storage: Annotated[str, Field(min_length=1)] | None = None
    tracking: Tracking = Tracking()
    recipe: Recipe
    placement: Placement = Placement()
    policy: Policy = Policy()
    price: Price | None = Field(None, exclude_if=_is_none)

    @property
    @abstractmethod
    def references(self) -> tuple[str, ...]:
        """The ids and references of its backbones, as their author wrote them."""

    @property
    @abstractmethod
    def seed_list(self) -> tuple[int, ...]:
        """Of every backbone."""

    @property
    def rule(self) -> VerdictRule | None:
        """By what its cells are judged; None where nobody wins."""
        return None

    @property
    def exported_to(self) -> "Export | None":
        """Where its model goes."""
        return None

    @property
    def tuned_by(self) -> Tuning | None:
        """How its learning rates are found; None where the recipe's holds."""
        return None


class SeveralBackbones(Job):
    """Several backbones under one recipe, each with several seeds."""

    backbones: tuple[str, ...] = Field(min_length=1)
    seeds: Count | tuple[Seed, ...] = 2
    verdict: VerdictRule = VerdictRule()

    @field_validator("backbones")
    @classmethod
    def _check_backbones(cls, backbones: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(backbones)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if (seeds if isinstance(seeds, int) else len(seeds)) > MAX_SEEDS:
            raise ValueError(f"a comparison has at most {MAX_SEEDS} seeds; use fewer")
        if isinstance(seeds, int):
            return seeds
        if not seeds:
            raise ValueError("at least one seed is needed; write a number of seeds, such as 3, or a list of them")
        return _distinct(seeds)

    @property
    def references(self) -> tuple[str, ...]:
        return self.backbones

    @property
    def seed_list(self) -> tuple[int, ...]:
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


class Comparison(SeveralBackbones):
    """Several backbones under one recipe, each with several seeds, and which of them wins.

    tuning: takes the place of recipe.optimizer.learning_rate.
    """

    kind = "comparison"

    tuning: Tuning | None = Field(None, exclude_if=lambda tuning: tuning is None)

    @property
    def rule(self) -> VerdictRule:
        return self.verdict

    @property
    def tuned_by(self) -> Tuning | None:
        return self.tuning


class Decision(Comparison):
    """A comparison that begins with its `first` seeds, and gets more of them until it is decided.

    Nobody writes it: it is made of a comparison's file.
    """

    kind = "decision"

    first: Annotated[int, Field(ge=2, le=MAX_SEEDS)]


class Ladder(Comparison):
    """A comparison at each budget of `recipe.budget.ladder`.

    Nobody writes it: it is made of a comparison's file that has such a budget.
    """

    kind = "ladder"


class SelfComparison(Comparison):
    """One backbone against itself: the first half of its seeds against the others.

    Nobody writes it: it is made of a comparison's file.
    """

    kind = "self-comparison"


class Benchmark(SeveralBackbones):
    """A comparison cut down to what its speed shows: `warm_up` steps that do not count, then `measured` ones.

    Nobody writes it: it is made of a comparison's file.
    """

    kind = "benchmark"
    in_turn = True
    cell_role = "benchmark"

    warm_up: Annotated[int, Field(ge=0, le=1_000_000)]
    measured: Count
    occurrence: str = Field(min_length=1)  # which measurement of the same comparison this is


class Export(Strict):
    """Where a finetune writes its Hugging Face folder, and the MLflow registered model it becomes."""

    folder: str = Field(min_length=1)
    register_as: Name | None = Field(None, alias="register")


class Finetune(Job):
    """One backbone, one seed: the same engine, then an export."""

    kind = "finetune"

    backbone: str = Field(min_length=1)
    seed: Seed = 0
    export: Export | None = None

    @property
    def references(self) -> tuple[str, ...]:
        return (self.backbone,)

    @property
    def seed_list(self) -> tuple[int, ...]:
        return (self.seed,)

    @property
    def exported_to(self) -> Export | None:
        return self.export


def seconds(text: str) -> float:
    """'90s', '30m', '12h', '2d' in seconds. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", text, re.ASCII)
    duration = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0.0
    if not 0 < duration <= LONGEST_TIMEOUT_S:
        raise ValueError("write a duration such as 90s, 30m, 12h or 2d, at most 366d")
    return duration


def further_seeds(given: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The given ones, then the smallest that are not among them, up to `most`."""
    others = (seed for seed in range(most + len(given)) if seed not in given)
    return (*given, *(next(others) for _ in range(most - len(given))))


def _distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    twice = sorted({str(item) for item in items if items.count(item) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed more than once; list each once")
    return items
