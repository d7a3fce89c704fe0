"""Which attention kernel runs, and why. The only door to flash-attn and to the kernel in varlen.py."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from backbones.errors import BackboneError
from backbones.inputs import Inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_REQUESTS = ("auto", "eager", "sdpa", "varlen", "flash_attention_2", "flash_attention_3", "flex_attention")
# From the best on. Flex attention computes its mask anew for every width of a row: only where nothing else can.
_BY_AUTO = ("varlen", "flash_attention_2", "sdpa", "flex_attention")
_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_HALF_PRECISION = ("varlen", *_PACKAGES)
_DROPOUTS = ("attention_dropout", "attn_pdrop")  # what configs call the dropout of attention scores
_CLASS_FLAGS = {
    "sdpa": "_supports_sdpa",
    "varlen": "_supports_flash_attn",
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

    @property
    def is_half_precision_only(self) -> bool:
        """Whether the kernel has no fp32."""
        return self.kernel in _HALF_PRECISION

    def arrange(self, inputs: Inputs) -> Inputs:
        """A batch as this kernel needs it, so that the documents of a row do not see each other.

        The flash kernels of transformers keep them apart in a batch of one row only (`_is_packed_sequence`), so they
        get all rows as one; varlen gets their bounds; the others see position ids that start again. Labels keep their
        order, not always their shape.
        """
        if self.kernel == "varlen":
            from backbones.varlen import document_bounds

            bounds = document_bounds(inputs.position_ids_BT)
            return replace(inputs, extras={**inputs.extras, "attention_mask": bounds})
        return inputs.as_one_row() if self.kernel in _PACKAGES else inputs

    def prepare(self) -> str:
        """Makes the kernel known to transformers, and returns the name that it has there."""
        if self.kernel == "varlen":
            from backbones.varlen import register_varlen

            register_varlen()
        return self.kernel


def resolve_attention(
    request: str,
    *,
    dtype: "torch.dtype | None" = None,
    llm_cls: "type[PreTrainedModel] | None" = None,
    config: "PreTrainedConfig | None" = None,
    generates: bool = False,
) -> AttentionChoice:
    """The kernel for `request`: auto | eager | sdpa | varlen | flash_attention_2 | flash_attention_3 | flex_attention.

    `dtype` is what attention computes in (None: half precision), `llm_cls` the class that must support the kernel,
    `config` the model's (None: the defaults of its class), `generates` asks for a kernel that takes padding masks and
    caches. auto: the first of varlen, flash_attention_2, sdpa, flex_attention and eager that can run. Raises
    AttentionUnavailableError for an explicit request that cannot run here, with the remedy.
    """
    if config is None and llm_cls is not None:
        config = llm_cls.config_class()
    if request not in _REQUESTS:
        raise AttentionUnavailableError(f"unknown attention {request!r}; choose one of {', '.join(_REQUESTS)}")
    if request != "auto":
        obstacle = _find_obstacle(request, dtype, llm_cls, config)
        if obstacle is not None:
            cause, remedy = obstacle
            raise AttentionUnavailableError(f"attention {request} cannot run here: {cause}; {remedy}, or choose auto")
        return AttentionChoice(request, request, "asked for")
    passed_over: list[str] = []
    for kernel in _BY_AUTO:
        if kernel == "varlen" and generates:
            passed_over.append("not varlen: it takes neither padding masks nor caches")
            continue
        obstacle = _find_obstacle(kernel, dtype, llm_cls, config)
        if obstacle is None:
            return AttentionChoice(kernel, request, "; ".join(["the best that can run here", *passed_over]))
        passed_over.append(f"not {kernel}: {obstacle[0]}")
    return AttentionChoice("eager", request, "; ".join(["always runs", *passed_over]))


def _find_obstacle(
    kernel: str,
    dtype: "torch.dtype | None",
    llm_cls: "type[PreTrainedModel] | None",
    config: "PreTrainedConfig | None",
) -> tuple[str, str] | None:
    """Why this kernel cannot run and what to do about it; None if it can."""
    import torch

    flag = _CLASS_FLAGS.get(kernel)
    if llm_cls is not None and flag is not None and not getattr(llm_cls, flag, False):
        return f"{llm_cls.__name__} does not support it", "choose eager"
    package = _PACKAGES.get(kernel)
    if package is not None and find_spec(package) is None:
        return f"the package {package} is not installed", "install it on every node"
    if kernel == "varlen" and (lacking := _find_lack_of_varlen(llm_cls, config)) is not None:
        return lacking
    if kernel in _HALF_PRECISION and dtype not in (None, torch.float16, torch.bfloat16):
        return f"it computes in half precision only, not in {dtype}", "set precision to bf16"
    if kernel not in ("eager", "sdpa") and not torch.cuda.is_available():
        return "there is no CUDA device", "place the work on GPUs"
    return None


def _find_lack_of_varlen(
    llm_cls: "type[PreTrainedModel] | None", config: "PreTrainedConfig | None"
) -> tuple[str, str] | None:
    """What torch or the model needs that varlen does not have, and what to do about it."""
    if find_spec("torch.nn.attention.varlen") is None:
        return "this torch has no torch.nn.attention.varlen", "install torch 2.11 or newer on every node"
    if llm_cls is not None and not getattr(llm_cls, "_supports_attention_backend", False):
        return f"{llm_cls.__name__} takes no kernel of others", "choose sdpa"
    if getattr(config, "attn_logit_softcapping", None):
        return "the model caps its attention scores, which it does not", "choose flex_attention"
    if any(getattr(config, name, None) for name in _DROPOUTS):
        return "the model drops attention scores out, which it does not", "choose sdpa"
    if getattr(config, "attention_chunk_size", None):
        return "the model attends in chunks, which it does not", "choose sdpa"
    return None
