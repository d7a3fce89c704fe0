"""`adapt_vlm`: what upstream's vision-language class lacks for `generate` on transformers 5.

Upstream (openvla/openvla, prismatic/models/vlms) was written for transformers 4.40. Whoever's language model is inside,
on 5 its `generate` asks the class for something that it does not have, its beam search calls what no language model has
any more, and its first step takes the new, empty cache for one that already holds the prompt: the prompt and the image
are dropped, and a fluent text comes out that has nothing to do with either.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import nn
from transformers import Cache, GenerationMixin

Class = TypeVar("Class", bound=type)

_IMAGE = "pixel_values"
_MARK = "__adapted_to_transformers_5__"


def adapt_vlm(vlm_cls: Class) -> Class:
    """Makes `generate` of upstream's PrismaticVLM, or of a class derived from it, work on transformers 5; returns it.

    In place, and for derived classes that override nothing of it too; doing it again changes nothing. Training, weights
    and checkpoints are not touched. Raises TypeError for any other class.
    """
    _raise_unless_prismatic(vlm_cls)
    for name in ("get_experts_implementation", "set_experts_implementation"):
        if not hasattr(vlm_cls, name):
            setattr(vlm_cls, name, _from_the_language_model(name))
    _replace(vlm_cls, "prepare_inputs_for_generation", _with_a_whole_first_step)
    if hasattr(vlm_cls, "_reorder_cache"):
        _replace(vlm_cls, "_reorder_cache", _with_caches_that_reorder_themselves)
    return vlm_cls


def _raise_unless_prismatic(vlm_cls: Any) -> None:
    remedy = "pass PrismaticVLM of prismatic.models.vlms, or a class derived from it"
    if not (isinstance(vlm_cls, type) and issubclass(vlm_cls, nn.Module) and issubclass(vlm_cls, GenerationMixin)):
        raise TypeError(f"adapt_vlm: {vlm_cls!r} is no torch module that generates; {remedy}")
    constructors = [set(_parameters(vars(base)["__init__"])) for base in vlm_cls.__mro__ if "__init__" in vars(base)]
    if not any({"vision_backbone", "llm_backbone"} <= names for names in constructors):
        raise TypeError(f"adapt_vlm: {vlm_cls.__name__} is not made of a vision_backbone and an llm_backbone; {remedy}")
    for name in ("forward", "prepare_inputs_for_generation"):
        if _IMAGE not in _parameters(getattr(vlm_cls, name)):
            raise TypeError(f"adapt_vlm: {vlm_cls.__name__}.{name} takes no {_IMAGE}; {remedy}")


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def _replace(vlm_cls: type, name: str, mended: Callable[[Any], Any]) -> None:
    """Puts the mended method on the class, unless the one that it has, or inherits, is one already."""
    found = getattr(vlm_cls, name)
    if not hasattr(found, _MARK):
        method = wraps(found)(mended(found))  # `generate` reads the signature
        setattr(method, _MARK, True)
        setattr(vlm_cls, name, method)


def _from_the_language_model(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        return getattr(self.llm_backbone.llm, name)(*arguments)

    return method


def _with_a_whole_first_step(prepare: Any) -> Callable[..., dict[str, Any]]:
    """A cache that holds nothing is none, as it was when the method was written; the forward pass gets it all the same.

    Raises RuntimeError for a prompt of one token beside an image: upstream's forward pass would take it for a step
    behind the prompt, and drop the image.
    """

    def method(self: Any, input_ids: Any = None, *arguments: Any, **options: Any) -> dict[str, Any]:
        cache = options.get("past_key_values")
        if not isinstance(cache, Cache) or cache.get_seq_length() > 0:
            inputs: dict[str, Any] = prepare(self, input_ids, *arguments, **options)
            return inputs
        if input_ids is not None and input_ids.shape[1] == 1 and options.get(_IMAGE) is not None:
            raise RuntimeError("Invalid `forward()` call! A prompt beside an image has at least two tokens.")
        inputs = prepare(self, input_ids, *arguments, **options | {"past_key_values": None})
        return inputs | {"past_key_values": cache}

    return method


def _with_caches_that_reorder_themselves(reorder: Any) -> Callable[..., Any]:
    def method(self: Any, past_key_values: Any, beam_idx: Any) -> Any:
        if not isinstance(past_key_values, Cache):
            return reorder(self, past_key_values, beam_idx)
        past_key_values.reorder_cache(beam_idx)
        return past_key_values

    return method
