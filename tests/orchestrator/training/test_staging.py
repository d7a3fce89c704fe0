"""The copy of a state that a checkpoint is written from: equal, untouched by later steps, in memory that is its own."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.hardware import PROCESS_STATUS
from orchestrator.training.checkpoints.staging import Staging

CPU = torch.device("cpu")
MIB = 1024**2
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
SHAPES = st.lists(st.integers(0, 5), max_size=3)


def state_of(kinds: list[tuple[list[int], torch.dtype]]) -> dict[str, Any]:
    tensors = [torch.randint(0, 2, shape).to(dtype) for shape, dtype in kinds]
    groups = [{"lr": 0.5, "betas": (0.9, 0.95), "names": ["a", "b"]}, *({"step": one} for one in tensors[:1])]
    return {"model": dict(zip("abcdef", tensors, strict=False)), "optimizer": {"param_groups": groups}}


def plain(value: Any) -> Any:
    """With numbers where tensors were, and what else is to be equal of them."""
    if isinstance(value, torch.Tensor):
        return value.tolist(), value.dtype, value.shape
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


@given(kinds=st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=6))
def test_a_copy_is_equal_and_stays_so_when_the_state_changes(kinds: list[tuple[list[int], torch.dtype]]) -> None:
    state = state_of(kinds)
    before, staging = plain(state), Staging(CPU)

    copy = staging.copy(state)
    for tensor in state["model"].values():
        tensor.fill_(7)

    assert plain(copy) == before
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in copy["model"].values())
    staging.close()


def test_the_next_copy_is_made_in_the_same_memory_and_what_has_two_names_is_copied_once() -> None:
    weight = torch.arange(1000.0)
    state = {"embedding": weight, "head": weight, "rows": weight[:500], "step": torch.tensor(3.0)}
    staging = Staging(CPU)

    first, again = staging.copy(state), staging.copy(state)

    assert {name: tensor.data_ptr() for name, tensor in first.items()} == {
        name: tensor.data_ptr() for name, tensor in again.items()
    }
    assert first["embedding"].data_ptr() == first["head"].data_ptr() != first["rows"].data_ptr()
    assert staging.used_bytes == 4032 + 2048 + 64
    staging.close()


def test_the_memory_is_there_before_the_first_copy_and_leaves_with_the_last() -> None:
    weight, staging = torch.zeros(64 * MIB, dtype=torch.uint8), Staging(CPU)
    before = resident_bytes()
    staging.reserve(weight.nbytes)
    reserved = resident_bytes()
    copy = staging.copy({"weight": weight})
    copied = resident_bytes()
    del copy
    staging.close()

    assert reserved - before > 60 * MIB
    assert copied - reserved < 4 * MIB
    assert resident_bytes() - before < 4 * MIB


def resident_bytes() -> int:
    lines = PROCESS_STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024
