"""What the JSON files of a finished job hold, key for key: `report.json`, `benchmark.json`, a schedule's history.

The document is the typed thing: what is built is what is written and what is read, so nothing is turned to and fro.
`backbone schema --of NAME` publishes these types. A key that earlier versions did not write is `NotRequired`.
Over 300 lines: whole documents, in the order in which they are read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar, final

from pydantic import JsonValue, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from jobs.results.costs.documents import Costs, Spent
from jobs.results.held_out.documents import HeldOutFacts
from jobs.results.predictions.documents import LadderFacts
from orchestrator.errors import InputError
from orchestrator.results import FORMAT, load_json

Facts = dict[str, JsonValue]  # recorded as found, under names that the recorder chooses
Document = TypeVar("Document")

REPORT_FORMAT: Literal[2] = 2  # format 1 called a score `val_bits_per_byte`, whatever the verdict's metric was

VerdictOutcome = Literal["winner", "tie", "undecided", "no verdict"]


class JobFacts(TypedDict):
    """Which job it was."""

    name: str
    id: str
    kind: str
    spec: Facts
    spec_yaml: str
    command: str
    created: str  # ISO 8601, UTC
    export: NotRequired[str | None]  # the folder of a finished export


class Environment(TypedDict):
    """Where it ran."""

    python: str
    platform: str
    packages: dict[str, str]
    hardware: str
    load_average: NotRequired[float]  # of the driver's machine, over one minute


class PreparedFacts(TypedDict, total=False):
    """What the preparation of the data counted; absent when the job ended before it."""

    rows_read: dict[str, int]  # split -> rows, those included that are dropped
    kept: int
    scored: int
    dropped: dict[str, int]  # reason -> examples
    backbones: dict[str, Facts]


class DataFacts(PreparedFacts):
    """The data of a job."""

    train: NotRequired[str]
    validation: NotRequired[str]
    train_examples: int
    validation_examples: int
    train_bytes: int
    validation_bytes: int
    train_hash: str
    validation_hash: str
    parity: str


class CellOutcome(TypedDict):
    """What became of a cell, whatever it measured."""

    cell_id: str
    backbone_id: str
    seed: int
    status: str
    attempts: int
    mlflow_run_id: str | None
    failure: str | None
    restarts: list[str]  # why each attempt but the last ended
    folder: str


class AdoptionFacts(TypedDict):
    """Whose result a cell took over, and in what training it would have differed."""

    adopted_from: str  # the cell that was trained
    learned_more: int  # training examples that it learned from, and the comparison drops
    learned_fewer: int  # those that the comparison keeps, and it did not learn from
    scored_more: int  # held-out items that it was scored on, and the comparison drops


class Evaluation(TypedDict):
    """Held-out bits per byte after `step` optimizer steps (0: before training)."""

    step: int
    progress: float | None
    bytes_seen: int | None
    tokens_seen: int | None
    train_time_s: float | None
    val_bits_per_byte: float | None
    val_loss: float | None


class TrainedCell(CellOutcome):
    """A cell of `report.json`; without a measurement the first four are empty."""

    metrics: dict[str, float | None]
    evaluations: list[Evaluation]
    loss_curve: list[tuple[float, float | None]]  # (step, nats per target token)
    contract: Facts
    success_curve: NotRequired[list[tuple[float, float]]]  # (share of the budget, success), of rollouts on the way
    adoption: NotRequired[AdoptionFacts]  # of a cell that an earlier comparison trained
    spent: NotRequired[Spent]


class Rung(TypedDict):
    """A round of trials; `amount` of the budget's kind for each."""

    trials: int  # of each backbone
    amount: float


class Trial(TypedDict):
    """A short run that only helps to find a learning rate."""

    cell_id: str
    rung: int  # from 1
    learning_rate: float
    status: str
    failure: str | None
    score: float | None  # bits per byte on the tune split; None unless it succeeded
    steps: NotRequired[float | None]  # optimizer steps
    folder: str


class TunedBackbone(TypedDict):
    """The trials of a backbone, by rung and learning rate."""

    best: float | None  # learning rate; None where no trial gave one
    edge: float | None  # the learning rate to add where the best is the smallest or the largest of all
    trials: list[Trial]


class TuningFacts(TypedDict):
    """How learning rates were found: for every backbone by the same trials, at the same spend."""

    rates: list[float]
    rungs: list[Rung]
    budget_kind: str
    spend: float  # of one backbone, as a share of the budget of one run
    examples: int  # of the tune split
    learnable_bytes: int
    groups: int  # source groups that are wholly in it; 0 where examples were drawn
    backbones: dict[str, TunedBackbone]


class RankedBackbone(TypedDict):
    """One row of the ranking; scores are of `verdict.metric`: bits per byte, unless the spec says otherwise."""

    rank: int  # from 1; equal scores rank by id
    backbone_id: str
    score: float  # mean over seeds
    val_bits_per_byte: NotRequired[float]  # the score again where it is that: its name in format 1
    seed_std: float | None  # between seeds; None with one seed
    seeds: dict[str, float]  # seed -> score; text keys, as JSON has them
    difference_to_best: float  # never negative
    worse_than_best: bool | None  # Holm over all pairs, since the best was picked by the data; None: not tested


class Pair(TypedDict):
    """Two backbones, `a` ranked above `b`; differences are bits per byte of b minus those of a."""

    a: str
    b: str
    difference: float  # never negative
    relative: float  # difference / score of b: a is that share below b
    standard_error: float  # of the difference, seeds and items together
    item_se: NotRequired[float]  # the items' part of it
    choice_se: NotRequired[float]  # the part of learning rates that trials chose
    degrees_of_freedom: float
    interval: list[float]  # two-sided, 1 - alpha
    p_value: float  # two-sided, uncorrected
    p_value_holm: float  # corrected over all pairs
    equivalent: bool  # two one-sided tests at alpha: the 1 - 2 alpha interval lies within +-margin


class NoiseFloor(TypedDict):
    """Of a backbone against itself; differences as in a pair."""

    difference: float  # the smallest that would be called a win
    relative: float  # to the best score
    false_winner: str | None  # the label that was called better


class Look(TypedDict):
    """Which look at the comparison a verdict is. A look by hand has no `declared` number of seeds."""

    number: int  # from 1
    alpha: float  # that this look's tests use
    spent: float  # of `total_alpha`, by this look
    total_alpha: float  # of all looks together: the spec's
    declared: int | None  # verdict.max_seeds, over whose looks alpha is spent
    earlier_winners: dict[str, str]  # number of an earlier look -> whom it named
    earlier_seeds: list[int]  # the most seeds of a backbone, at each earlier look
    earlier_backbones: NotRequired[dict[str, list[str]]]  # number of an earlier look -> its backbones, if others


class LookRecord(TypedDict):
    """A look, as the folder of a job keeps it."""

    number: int
    cells: str  # hash of the cells that were judged, and the metric
    seeds: dict[str, int]  # backbone -> how many
    declared: int | None
    share: float | None  # of the declared seeds
    alpha: float
    spent: float  # of the spec's alpha, by this look
    total_alpha: float  # the spec's
    outcome: str
    winner: str | None
    judged: str  # ISO 8601, UTC


class LooksDocument(TypedDict):
    """`looks.json`. `comparison`: the hash of everything but the seeds."""

    format: Literal[1]
    comparison: str
    subjects: NotRequired[list[str]]  # a hash of each candidate, its recipe and its data, whatever its rivals
    looks: list[LookRecord]


@final
class Verdict(TypedDict):
    """What a comparison showed. `further_seeds` is per backbone and assumes that the observed differences stay."""

    outcome: VerdictOutcome
    winner: str | None
    sentence: str
    ranking: NotRequired[list[RankedBackbone]]  # best first; stands beside the verdict in `report.json`
    pairs: list[Pair]  # every two backbones with two seeds or more, in order of rank
    alpha: float  # of this look
    metric: NotRequired[str]  # what the scores are: verdict.metric of the spec
    look: NotRequired[Look]
    noise_floor: NotRequired[NoiseFloor]
    ruled_out: NotRequired[dict[str, list[str]]]  # backbone -> which constraints it does not meet, and how
    margin: float  # relative to the best score
    # [low, high] below 3 degrees of freedom; None: seeds alone would not decide
    further_seeds: NotRequired[int | list[int] | None]
    notes: list[str]
    seed_noise: NotRequired[Literal["pooled", "paired"]]  # paired: what a seed does to all backbones is left out
    # seed_std (pooled), seed_df, seed_std_paired, shared_seed_share, item_se (best pair), item_df, groups, items
    noise: dict[str, float | None]


@final
class NoVerdict(TypedDict):
    """Of a finetune: nothing was compared."""


class EarlierValue(TypedDict):
    """A quantity in an earlier run of the schedule."""

    tick: str
    value: float


class HistoryRow(TypedDict):
    """One quantity of one backbone against the earlier runs that measured the same."""

    backbone_id: str
    quantity: str
    value: float | None
    earlier: list[EarlierValue]
    band: list[float] | None  # low, high
    left: Literal["below", "above"] | None  # where it left the band
    worse: bool | None


PackageMove = TypedDict("PackageMove", {"name": str, "from": str | None, "to": str | None})


class History(TypedDict):
    """A scheduled run against the earlier ones of its schedule."""

    schedule: str
    tick: str
    level: float  # of the bands
    earlier: list[str]  # ticks, oldest first
    rows: list[HistoryRow]
    moved: list[PackageMove]
    moved_since: str | None  # tick
    notes: list[str]
    sentences: list[str]


class MeasuredBackbone(TypedDict):
    """A backbone in one firing of a schedule. `subject` is equal where the same was measured."""

    subject: str
    values: dict[str, float]


class HistoryRecord(TypedDict):
    """The file that a firing leaves in its schedule's folder."""

    format: NotRequired[Literal[1]]
    occurrence: str
    hardware: str
    packages: dict[str, str]
    backbones: dict[str, MeasuredBackbone]


class Film(TypedDict):
    """An episode of a policy."""

    success: bool
    instruction: str
    length: int  # steps
    data: str  # a data URI: an animated WebP


class RolledOut(TypedDict):
    """Episodes of all finished runs of a backbone together."""

    success: float | None  # share of the episodes
    interval: list[float]  # Wilson's of 95 %, as if runs played different episodes
    random_success: float | None
    random_interval: NotRequired[list[float]]
    blind_success: float | None  # with the instruction of another episode; None where all have the same
    blind_interval: NotRequired[list[float]]  # empty where there is no such success
    total_reward: float | None  # mean of an episode
    length: float | None  # mean steps of an episode
    films: list[Film]  # of the first run


class Agreement(TypedDict):
    """A verdict over the same runs by the measure that the comparison's is not by: success, or bits of actions."""

    metric: str
    unit: str
    alpha: NotRequired[float]  # of the verdict's look
    outcome: VerdictOutcome
    winner: str | None
    sentence: str
    ranking: list[RankedBackbone]
    agree: str  # whether it says what the verdict says, in a sentence


class RolloutFacts(TypedDict):
    """What the trained models did in a simulator."""

    environment: str
    episodes: int  # of each run, the same ones for all
    max_steps: NotRequired[int | None]  # of an episode; None: the environment's own limit
    chunk: NotRequired[int]  # actions that the models answer with
    execute: NotRequired[int]  # of these, that are taken before the next question
    backbones: dict[str, RolledOut]
    agreement: NotRequired[Agreement]


class Report(TypedDict):
    """`report.json` of a comparison or a finetune, as it is written, and as `load_report` gives it."""

    format: Literal[2]
    comparison: JobFacts
    environment: Environment
    data: DataFacts
    certificates: NotRequired[dict[str, Facts | None]]  # None: the backbone ran without one
    cells: list[TrainedCell]
    ranking: NotRequired[list[RankedBackbone]]
    verdict: NotRequired[Verdict | NoVerdict]
    costs: NotRequired[Costs]
    history: NotRequired[History | None]  # None: no schedule fired the job
    tuning: NotRequired[TuningFacts]
    ladder: NotRequired[LadderFacts]  # the rest of the document is of its largest budget
    held_out: NotRequired[HeldOutFacts]  # absent where no cell finished
    rollouts: NotRequired[RolloutFacts]


def find_verdict(report: Report) -> Verdict | None:
    """The verdict of a comparison; a finetune has none."""
    verdict = report.get("verdict")
    return verdict if verdict and "outcome" in verdict else None


def metric_of(verdict: Mapping[str, Any] | None) -> str:
    """What a ranking's scores are of, as `verdict.metric` names it; bits per byte where nothing was judged."""
    return str((verdict or {}).get("metric", "bits_per_byte"))


def load_report(path: Path) -> Report:
    """Reads `report.json`, also of earlier formats. Raises InputError for a later one, or for what is no report."""
    return load_document(path, TypeAdapter(Report), REPORT_FORMAT, _with_named_scores)


def _with_named_scores(found: Any) -> Any:
    """A report of format 1 as one of format 2."""
    if not isinstance(found, dict) or found.get("format") == REPORT_FORMAT:
        return found
    of_bits = metric_of(found.get("verdict")) == "bits_per_byte"
    for row in found.get("ranking", ()):
        row["score"] = row["val_bits_per_byte"] if of_bits else row.pop("val_bits_per_byte")
    for row in found.get("rollouts", {}).get("agreement", {}).get("ranking", ()):
        row["score"] = row.pop("val_bits_per_byte")
    return {"format": REPORT_FORMAT, **{key: value for key, value in found.items() if key != "format"}}


def load_document(
    path: Path,
    shape: TypeAdapter[Document],
    newest: int = FORMAT,
    upgrade: Callable[[Any], Any] = lambda found: found,
) -> Document:
    """The document as it stands in the file, once it is of the newest format: checked, and not converted."""
    try:
        found: Any = upgrade(load_json(path, newest))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}. Run the job's command again to write it anew") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r}. Run the job's command again to write it anew") from None
    try:
        shape.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} is damaged: {key or 'the document'}: {first['msg']}. Run the job's command again to write it anew"
        ) from None
    document: Document = found
    return document
