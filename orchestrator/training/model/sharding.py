"""FSDP2 around the decoder and vision layers of a backbone, and what was found on the wrapped model."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from backbones.adaptation import apply_adaptation, init_adapters
from backbones.contract import TrainableBackbone
from backbones.hf_causal import HFCausalLLMBackbone
from backbones.labelled import METHODS
from backbones.recomputation import found_checkpointing
from backbones.registry import build, fetch
from backbones.spec import BackboneSpec, VisionTower
from orchestrator.errors import ShardingError
from orchestrator.parallel import Mesh
from orchestrator.spec_files.spec import Recipe
from orchestrator.training.model.compilation import compile_layers, compiles_layers, is_compiled
from orchestrator.training.model.optimizer import Optimizers

COMPUTE_DTYPE = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build_sharded(
    spec: BackboneSpec, recipe: Recipe, mesh: Mesh, *, seed: int, keep_gathered: bool = False
) -> tuple[TrainableBackbone, list[nn.Module]]:
    """Builds, adapts and shards a backbone as `recipe` says; returns it with its sharded decoder layers. Collective.

    It is laid out without weights and filled once it is sharded: each rank reads its own rows. What has to come from
    the hub is downloaded by one rank of each node. `keep_gathered`: see `shard`.
    """
    assert recipe.activation_checkpointing != "auto", "planning decides that"
    if mesh.is_first_on_node:
        fetch(spec)
    mesh.barrier()
    backbone = build(
        fetch(spec, cached_only=True),
        empty=True,
        max_length=recipe.sequence_length,
        seed=seed,
        attention=recipe.attention,
        compute_dtype=COMPUTE_DTYPE[recipe.precision],
    )
    layers = adapt_and_shard(backbone, recipe, mesh.fsdp, keep_gathered, compiles_layers(recipe.compile, mesh.device))
    backbone.load_weights(mesh.device)
    init_adapters(backbone.llm, seed)
    return backbone, layers


def adapt_and_shard(
    backbone: HFCausalLLMBackbone,
    recipe: Recipe,
    mesh: DeviceMesh,
    keep_gathered: bool = False,
    compiling: bool = False,
) -> list[nn.Module]:
    """What a recipe makes of a backbone that is laid out, before weights are read: a dry run does just this."""
    adaptation = recipe.adaptation
    apply_adaptation(backbone, adaptation.kind, adaptation.lora, adaptation.vision)
    if recipe.activation_checkpointing:
        backbone.enable_gradient_checkpointing(recipe.activation_checkpointing == "selective")
    if compiling:
        compile_layers(backbone.llm, decoder_layers(backbone))
    return shard(backbone, mesh, recipe.precision, keep_gathered)


def shard(
    backbone: TrainableBackbone, mesh: DeviceMesh, precision: str, keep_gathered: bool = False
) -> list[nn.Module]:
    """Shards `backbone.llm` in place: every decoder layer and every layer of a vision tower is one unit, the root holds
    the rest.

    Returns the sharded decoder layers. Parameters stay fp32 as master weights; forward and backward run in
    `precision`, gradients are reduced in fp32. `keep_gathered` has the layers gathered once for both, which takes the
    memory of all of them in `precision`. Raises ShardingError when the class matches fewer modules than the model
    has layers: sharding only the root would train correctly and gather the whole model at once, which is the failure
    nobody notices.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=COMPUTE_DTYPE[precision], reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=True
    )
    layers = decoder_layers(backbone)
    units = [*layers, *(layer for _, tower in vision_layers(backbone) for layer in tower)]
    for layer in units:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=not keep_gathered)
    fully_shard(backbone.llm, mesh=mesh, mp_policy=policy)
    for method in METHODS:
        register_fsdp_forward_method(backbone.llm, method)
    unsharded = [name for name, parameter in backbone.llm.named_parameters() if not isinstance(parameter, DTensor)]
    if unsharded or not all(isinstance(layer, FSDPModule) for layer in units):
        raise ShardingError(f"{backbone.identifier}: not sharded: {', '.join(unsharded[:5]) or 'a layer'}")
    return layers


def decoder_layers(backbone: TrainableBackbone) -> list[nn.Module]:
    """Every instance of the backbone's decoder-layer class; raises ShardingError unless there is one per layer.

    To be asked before sharding: `fully_shard` gives each module a class of its own.
    """
    layer_class = backbone.transformer_layer_cls
    layers = [module for module in backbone.llm.modules() if isinstance(module, layer_class)]
    expected = backbone.llm.config.get_text_config().num_hidden_layers
    if len(layers) != expected:
        raise ShardingError(
            f"{backbone.identifier}: {layer_class.__name__} matches {len(layers)} modules, but the model has "
            f"{expected} decoder layers; correct the family's transformer_layer_cls"
        )
    return layers


def vision_layers(backbone: TrainableBackbone) -> Sequence[tuple[VisionTower, Sequence[nn.Module]]]:
    """Each vision tower with its layers; raises ShardingError unless it has as many as its spec says."""
    for tower, layers in backbone.vision_layers:
        if len(layers) != tower.num_layers:
            raise ShardingError(
                f"{backbone.identifier}: {tower.layer_cls} matches {len(layers)} modules, but the vision tower has "
                f"{tower.num_layers} layers; correct layer_cls in its spec"
            )
    return backbone.vision_layers


def found_contract(
    backbone: TrainableBackbone, layers: list[nn.Module], optimizers: Optimizers, precision: str
) -> dict[str, Any]:
    """What the wrapped model really is, read off its tensors after the first step."""
    parameters = [parameter for parameter in backbone.llm.parameters() if parameter.requires_grad]
    units = [module for module in backbone.llm.modules() if isinstance(module, FSDPModule)]
    state = cast(Any, layers[0])._get_fsdp_state()
    policy = state._mp_policy
    return {
        "fsdp_units": len(units),
        "reshards_after_forward": bool(state._fsdp_param_group._reshard_after_forward),
        "compiled": "layers" if all(is_compiled(layer) for layer in layers) else "none",
        "activation_checkpointing": found_checkpointing(layers),
        "decoder_layer": type(layers[0]).__name__.removeprefix("FSDP"),
        **_found_towers(backbone),
        "parameter_dtype": _joined(str(parameter.dtype) for parameter in parameters),
        "compute_dtype": _joined([policy.param_dtype]),
        "reduce_dtype": _joined([policy.reduce_dtype]),
        "gradient_dtype": _joined(str(p.grad.dtype) for p in parameters if p.grad is not None),
        "optimizer_state_dtype": _joined(optimizers.state_dtypes()),
        "parameters": sum(parameter.numel() for parameter in backbone.llm.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters),
        "precision": precision,
    }


def _found_towers(backbone: TrainableBackbone) -> dict[str, str]:
    """How many layers of which class are units in each vision tower; nothing where there is none."""
    towers = [
        f"{sum(isinstance(layer, FSDPModule) for layer in layers)} {tower.layer_cls}"
        for tower, layers in backbone.vision_layers
    ]
    return {"vision_layers": ", ".join(towers)} if towers else {}


def _joined(names: Any) -> str:
    return ", ".join(sorted({str(name).removeprefix("torch.") for name in names}))
