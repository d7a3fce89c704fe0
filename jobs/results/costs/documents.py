"""What `report.json` says of time and money, key for key; and what the attempts of a cell leave of theirs."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Device = Literal["GPU", "CPU core"]


class Spent(TypedDict):
    """What a cell took, over all its attempts."""

    seconds: float  # from the request for workers to the end of each attempt
    device_hours: float  # those of each attempt times its GPUs, or its CPU cores where workers have no GPU
    cost: float | None  # None: the spec has no price for such devices
    starting_s: NotRequired[float]  # of the seconds: workers start once for many cells, a certificate is made once


class BackboneCost(TypedDict):
    """What the cells of a backbone took."""

    backbone_id: str
    device_hours: float  # of all its cells, also of those that did not succeed, and of trials
    tuning_device_hours: NotRequired[float]  # of trials alone
    device_hours_per_run: float | None  # mean of the cells that succeeded
    cost: float | None
    cost_per_run: float | None


class Costs(TypedDict):
    """What a job took. Cells that other jobs have too are counted in each of them."""

    device: Device
    price_per_hour: float | None  # of one such device
    currency: str | None
    device_hours: float
    cost: float | None
    backbones: list[BackboneCost]


class AttemptsRecord(TypedDict):
    """`attempts.json` of a cell, over all launches."""

    count: int
    reasons: list[str]  # why each of them ended
    micro_batch_size: NotRequired[int | None]
    ended_ms: NotRequired[list[int | None]]  # when each of them ended; None: nobody was there to see it
