"""Which attention kernel runs, and why. The only door to flash-attn."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from backbones.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_REQUESTS = ("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_CLASS_FLAGS = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}


class AttentionUnavailableError(BackboneError, ValueError):
    """The attention kernel that was asked for cannot run here."""

    status = "INFEASIBLE"


@dataclass(frozen=True)
class AttentionChoice:
    """The kernel that runs (transformers' `attn_implementation`), what was asked for, and why this one."""

    kernel: str
    requested: str
    reason: str


def resolve_attention(
    request: str, *, dtype: "torch.dtype | None" = None, llm_cls: "type[PreTrainedModel] | None" = None
) -> AttentionChoice:
    """The kernel for `request`, one of auto | eager | sdpa | flash_attention_2 | flash_attention_3 | flex_attention.

    `dtype` is what attention computes in (None: half precision), `llm_cls` the class that must support the kernel.
    auto: flash_attention_2 where it can run, else sdpa, else eager. Raises AttentionUnavailableError for an explicit
    request that cannot run here, with the remedy.
    """
    if request not in _REQUESTS:
        raise AttentionUnavailableError(f"unknown attention {request!r}; choose one of {', '.join(_REQUESTS)}")
    if request != "auto":
        obstacle = _find_obstacle(request, dtype, llm_cls)
        if obstacle is not None:
            cause, remedy = obstacle
            raise AttentionUnavailableError(f"attention {request} cannot run here: {cause}; {remedy}, or choose auto")
        return AttentionChoice(request, request, "asked for")
    passed_over: list[str] = []
    for kernel in ("flash_attention_2", "sdpa"):
        obstacle = _find_obstacle(kernel, dtype, llm_cls)
        if obstacle is None:
            return AttentionChoice(kernel, request, "; ".join(["the best that can run here", *passed_over]))
        passed_over.append(f"not {kernel}: {obstacle[0]}")
    return AttentionChoice("eager", request, "; ".join(["always runs", *passed_over]))


def _find_obstacle(
    kernel: str, dtype: "torch.dtype | None", llm_cls: "type[PreTrainedModel] | None"
) -> tuple[str, str] | None:
    """Why this kernel cannot run and what to do about it; None if it can."""
    import torch

    flag = _CLASS_FLAGS.get(kernel)
    if llm_cls is not None and flag is not None and not getattr(llm_cls, flag, False):
        return f"{llm_cls.__name__} does not support it", "choose eager"
    package = _PACKAGES.get(kernel)
    if package is not None and find_spec(package) is None:
        return f"the package {package} is not installed", "install it on every node"
    if package is not None and dtype not in (None, torch.float16, torch.bfloat16):
        return f"it computes in half precision only, not in {dtype}", "set precision to bf16"
    if kernel not in ("eager", "sdpa") and not torch.cuda.is_available():
        return "there is no CUDA device", "place the work on GPUs"
    return None
