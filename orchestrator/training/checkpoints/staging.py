"""A copy of this rank's state in CPU memory that is allocated once: all that a checkpoint asks of the training."""

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor

ALIGNMENT = 64  # bytes: where a tensor may begin
Key = tuple[int, torch.dtype, torch.Size, tuple[int, ...]]
Moment = torch.cuda.Event | None  # of a device's stream; a CPU has done what it was told
PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every thread and device of the process


class Staging:
    """CPU memory for one copy of a state; page-locked where the device is CUDA, so that it is filled at bus speed.

    The memory is a mapping of its own: closed, it goes back to the system and not to an allocator that keeps it.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._memory: mmap.mmap | None = None
        self._address = 0
        self.used_bytes = 0  # by the newest copy

    def reserve(self, size: int) -> None:
        """Allocates that many bytes and touches every page: otherwise the first copy would pay for it."""
        self.close()
        self._memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._address = whole.data_ptr()
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self._address, whole.numel(), PORTABLE))
        else:
            whole.zero_()

    def moment(self) -> Moment:
        """Now, in the work that this thread has given the device: what `copy` in another thread has to wait for."""
        return torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None

    def copy(self, state: dict[str, Any], moment: Moment = None) -> dict[str, Any]:
        """The state, as of `moment`, with every tensor replaced by its copy in this memory; valid until the next call.

        Returns when all is copied, by a stream of its own: what computes meanwhile does not stop. Allocates where less
        was reserved than the state needs. What stands under two names, as tied embeddings do, is copied once.
        """
        originals = {_key(local): local for local in map(_local, _tensors(state))}
        self.used_bytes = sum(_aligned(local.nbytes) for local in originals.values())
        if self._memory is None or len(self._memory) < self.used_bytes:
            self.reserve(self.used_bytes)
        copies: dict[Key, torch.Tensor] = {}
        offset = 0
        for key, local in originals.items():
            copies[key] = self._tensor_at(offset, local)
            offset += _aligned(local.nbytes)
        with self._beside(moment):
            for key, local in originals.items():
                copies[key].copy_(local, non_blocking=True)

        def copy_of(tensor: torch.Tensor) -> torch.Tensor:
            copy = copies[_key(_local(tensor))]
            # The class itself, since `from_local` would move the copy back to the mesh's device.
            return DTensor(copy, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else copy

        staged: dict[str, Any] = _mapped(state, copy_of)
        return staged

    def close(self) -> None:
        """Gives the memory back, once no copy in it is held any more."""
        if self._memory is not None and self._device.type == "cuda":
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._address))
        self._memory = None

    @contextmanager
    def _beside(self, moment: Moment) -> Iterator[None]:
        """On a stream of its own, from `moment` on, until its work is done."""
        if self._device.type != "cuda":
            yield
            return
        stream = torch.cuda.Stream(self._device)
        stream.wait_event(moment if moment is not None else torch.cuda.current_stream(self._device).record_event())
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def _tensor_at(self, offset: int, like: torch.Tensor) -> torch.Tensor:
        """Over a storage of just its bytes: DCP would copy a part of a larger one before it writes it."""
        if like.numel() == 0:  # of a rank that has no row of a short tensor
            return torch.empty(like.shape, dtype=like.dtype)
        assert self._memory is not None
        return torch.frombuffer(self._memory, dtype=like.dtype, count=like.numel(), offset=offset).view(like.shape)


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for one in state.values() if isinstance(state, dict) else state:
            yield from _tensors(one)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(one, change) for one in value)
    return value


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _key(tensor: torch.Tensor) -> Key:
    """What two names of the same bytes have in common."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
