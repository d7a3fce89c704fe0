"""Where the contracts of the runs differ, and whether that had to be expected. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.formats import fact, flatten
from jobs.results.documents import TrainedCell

ABSENT = "absent"

# Facts that may differ without the recipe having differed. Everything else is held constant by the recipe.
EXPECTED = {
    "decoder_layer": "follows from the architecture",
    "fsdp_units": "follows from the architecture",
    "decay_parameters": "follows from the architecture",
    "no_decay_parameters": "follows from the architecture",
    "parameters": "follows from the architecture",
    "trainable_parameters": "follows from the architecture",
    "weights_digest": "each backbone has its own weights",
    "revision": "each backbone has its own weights",
    "attention.reason": "explains the kernel",
    "tokenizer_rows": "follows from the tokenizer",
    "prompt_format": "each backbone is trained with its own prompt",
    "prompt_example": "each backbone is trained with its own prompt",
    "prompt_hash": "each backbone is trained with its own prompt",
    "micro_batch_size": "the gradient is the same for every split of the global batch",
    "accumulation_steps": "the gradient is the same for every split of the global batch",
}


@dataclass(frozen=True)
class ContractFact:
    """One fact of the contract: the distinct values found in the runs of each backbone, in order of seed."""

    name: str
    values: dict[str, tuple[str, ...]]
    reason: str | None  # why a difference is no surprise; None where the recipe holds the fact constant

    @property
    def differs_between_seeds(self) -> bool:
        return any(len(found) > 1 for found in self.values.values())

    @property
    def differs(self) -> bool:
        return self.differs_between_seeds or len(set(self.values.values())) > 1

    @property
    def is_expected(self) -> bool:
        """A backbone whose own runs disagree is never expected."""
        return self.reason is not None and not self.differs_between_seeds

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """The values with the backbones that have them, most common first."""
        owners: dict[str, list[str]] = {}
        for backbone_id, found in self.values.items():
            owners.setdefault(" / ".join(found), []).append(backbone_id)
        return sorted(owners.items(), key=lambda item: -len(item[1]))


def contract_facts(cells: Iterable[TrainedCell]) -> list[ContractFact]:
    """Every fact that any run recorded; runs without a contract (they never started) say nothing."""
    contracts = [(cell["backbone_id"], flatten(cell["contract"])) for cell in cells if cell["contract"]]
    names = dict.fromkeys(name for _, contract in contracts for name in contract)
    return [_fact(name, contracts) for name in names]


def contract_differences(cells: Iterable[TrainedCell]) -> list[ContractFact]:
    """The facts that are not the same in every run, the unexpected ones first."""
    different = [found for found in contract_facts(cells) if found.differs]
    return sorted(different, key=lambda found: found.is_expected)


def _fact(name: str, contracts: list[tuple[str, dict[str, object]]]) -> ContractFact:
    values: dict[str, dict[str, None]] = {}
    for backbone_id, contract in contracts:
        text = fact(contract[name]) if name in contract else ABSENT
        values.setdefault(backbone_id, {})[text] = None
    distinct = {backbone_id: tuple(found) for backbone_id, found in values.items()}
    return ContractFact(name, distinct, EXPECTED.get(name, EXPECTED.get(name.split(".")[0])))
