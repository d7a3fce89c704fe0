"""Why a cell waits: a reason for programs, with the words for people."""

from enum import StrEnum


class WaitingReason(StrEnum):
    """What a waiting cell waits for."""

    UNKNOWN = "UNKNOWN"  # nobody has looked yet, or it does not wait
    OWNER_RULE = "OWNER_RULE"  # the quota or the budget of its owner
    NEVER_FITS = "NEVER_FITS"  # not even on the empty cluster, as it is now
    FIRST_IN_LINE = "FIRST_IN_LINE"  # nodes are promised to it
    NO_ROOM = "NO_ROOM"  # what is free is too little, or stands on the wrong nodes
    BEHIND_FIRST = "BEHIND_FIRST"  # it may not delay the first in line
    SAME_CELL = "SAME_CELL"  # another job trains the very cell
    IN_TURN = "IN_TURN"  # its job trains one cell at a time


class Waiting(str):
    """A sentence that carries its reason. Empty: nothing waits."""

    reason: WaitingReason

    def __new__(cls, text: str = "", reason: WaitingReason = WaitingReason.UNKNOWN) -> "Waiting":
        waiting = super().__new__(cls, text)
        waiting.reason = reason
        return waiting


NOTHING_WAITS = Waiting()
