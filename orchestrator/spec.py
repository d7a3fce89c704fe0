"""The nouns that people write: strict, frozen, checked at the border. No torch, ray, mlflow.

A spec file is a `Comparison` or a `Finetune`; both resolve to `Cell`s that share one `Recipe` and one `Placement`.
"""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Item = TypeVar("Item", str, int)
PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; instances are immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Strict):
    """Where examples come from: a JSONL file, a folder of them, or `builtin:stdlib`."""

    train: str = Field(min_length=1)
    validation: str = Field(min_length=1)
    format: Literal["messages", "prompt_completion", "text"] = "messages"
    parity: Literal["intersection", "per_backbone"] = "intersection"


class Budget(Strict):
    """How long a cell trains. Learning-rate schedule and evaluation follow the share of it that is used up.

    bytes: UTF-8 bytes of learnable text; tokens: input tokens without padding; flops: 6N + 12LHS per token.
    """

    kind: Literal["bytes", "tokens", "steps", "flops", "gpu_hours"] = "bytes"
    amount: float = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> "Budget":
        if self.kind == "steps" and self.amount != int(self.amount):
            raise ValueError("a budget in steps must be a whole number")
        if self.kind == "gpu_hours":
            raise ValueError(
                "budget.kind gpu_hours is not available in this version; use bytes, tokens, steps or flops"
            )
        return self


class Optimizer(Strict):
    """AdamW with decoupled weight decay on matrices only, warm-up, then the schedule, then clipping."""

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
            raise ValueError("each beta must be at least 0 and below 1")
        return betas


class Adaptation(Strict):
    """Which parameters learn."""

    kind: Literal["full", "last_layer", "bias_only", "lora"] = "full"
    rank: PositiveInt | None = None
    alpha: float | None = None
    dropout: float | None = None
    target_modules: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Adaptation":
        lora_only = {name for name in ("rank", "alpha", "dropout", "target_modules") if getattr(self, name) is not None}
        if self.kind == "lora":
            raise ValueError("adaptation lora is not available in this version; use full, last_layer or bias_only")
        if lora_only:
            raise ValueError(f"{', '.join(sorted(lora_only))} belong to kind lora only; remove them")
        return self


class Evaluate(Strict):
    """When held-out bits per byte are measured: before training, then every share of the budget, then at the end."""

    every: Fraction = 0.1
    tasks: tuple[str, ...] = ()

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if tasks:
            raise ValueError("lm-eval tasks are not available in this version; leave evaluate.tasks empty")
        return tasks


class Checkpointing(Strict):
    """A resumable checkpoint every share of the budget; the newest `keep` are kept."""

    every: Fraction = 0.1
    keep: PositiveInt = 2


class Recipe(Strict):
    """Everything that is held constant across the cells of a comparison."""

    data: Data
    sequence_length: Annotated[int, Field(ge=8, le=10_000_000)] = 2048
    global_batch_size: PositiveInt = 64  # examples, or packed sequences when packing is on
    micro_batch_size: Literal["auto"] | PositiveInt = "auto"
    packing: bool = True
    budget: Budget
    optimizer: Optimizer = Optimizer()
    adaptation: Adaptation = Adaptation()
    precision: Literal["bf16", "fp32"] = "bf16"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = "auto"
    activation_checkpointing: bool = True
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpointing = Checkpointing()


class Placement(Strict):
    """Where a cell runs: Ray Train workers and what each of them holds."""

    workers: PositiveInt = 1
    gpus_per_worker: Literal[0, 1] = 0
    cpus_per_worker: PositiveInt = 1
    accelerator: str | None = None
    replicas: PositiveInt = 1  # above 1: HSDP, parameters are sharded over workers / replicas ranks

    @model_validator(mode="after")
    def _check(self) -> "Placement":
        if self.workers % self.replicas:
            raise ValueError(f"replicas ({self.replicas}) must divide workers ({self.workers})")
        if self.accelerator and not self.gpus_per_worker:
            raise ValueError(f"accelerator {self.accelerator} needs gpus_per_worker: 1")
        return self


class Tracking(Strict):
    """Where MLflow is; `uri` falls back to MLFLOW_TRACKING_URI, then to SQLite in the storage folder."""

    uri: str | None = None
    experiment: str = Field("backbones", min_length=1)


class VerdictRule(Strict):
    """Two-sided `alpha` of every claim, and the relative `margin` inside which two backbones are a tie."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    margin: float = Field(0.005, gt=0, lt=1)
    constraints: dict[str, float | str] = {}

    @field_validator("constraints")
    @classmethod
    def _check_constraints(cls, constraints: dict[str, float | str]) -> dict[str, float | str]:
        if constraints:
            raise ValueError("verdict.constraints are not available in this version; leave them empty")
        return constraints


class Policy(Strict):
    """How the job layer treats the cells; never part of their identity."""

    priority: int = 0
    preemptible: bool = True
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    timeout: str = "12h"

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, text: str) -> str:
        seconds(text)
        return text

    @property
    def timeout_s(self) -> float:
        return seconds(self.timeout)


class Job(Strict):
    """What comparisons and finetunes have in common."""

    name: str = Field(pattern=NAME_PATTERN)
    storage: str | None = None
    tracking: Tracking = Tracking()
    recipe: Recipe
    placement: Placement = Placement()
    policy: Policy = Policy()


class Comparison(Job):
    """Several backbones under one recipe, each with several seeds."""

    backbones: tuple[str, ...] = Field(min_length=1)
    seeds: PositiveInt | tuple[Seed, ...] = 2
    verdict: VerdictRule = VerdictRule()

    @field_validator("backbones")
    @classmethod
    def _check_backbones(cls, backbones: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(backbones)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(seeds, int):
            if seeds > 1000:
                raise ValueError("more than 1000 seeds; give a number of seeds or a list of them")
            return seeds
        if not seeds:
            raise ValueError("at least one seed is needed; write a number of seeds, such as 3, or a list of them")
        return _distinct(seeds)

    @property
    def seed_list(self) -> tuple[int, ...]:
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


class Export(Strict):
    """Where a finetune writes its Hugging Face folder, and the MLflow registered model it becomes."""

    folder: str = Field(min_length=1)
    register_as: str | None = Field(None, alias="register", pattern=NAME_PATTERN)


class Finetune(Job):
    """One backbone, one seed: the same engine, then an export."""

    backbone: str = Field(min_length=1)
    seed: Seed = 0
    export: Export | None = None


def seconds(text: str) -> float:
    """'90s', '30m', '12h', '2d' in seconds. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match or float(match[1]) <= 0:
        raise ValueError("write a duration such as 90s, 30m, 12h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    twice = sorted({str(item) for item in items if items.count(item) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed more than once; list each once")
    return items
