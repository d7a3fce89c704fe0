"""Names and rows of a model's parameters: what adapting, loading and resizing share. Loads torch lazily."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def is_adapter(name: str) -> bool:
    """Whether this parameter was added by peft."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """A parameter's name without what peft puts in front of a weight that it adapts."""
    return name.replace(".base_layer.", ".")


def local_rows(tensor: "torch.Tensor") -> "tuple[torch.Tensor, int]":
    """This rank's part of a tensor, and the number of its first row. FSDP shards rows."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert tuple(shape[1:]) == tuple(tensor.shape[1:]), "parameters are sharded by rows"
    return tensor.to_local().detach(), int(offset[0])


def embedding_parameters(llm: "PreTrainedModel") -> "dict[str, nn.Parameter]":
    """By name, the parameters with one row for each token: the input embedding and, untied, the head and its bias."""
    modules = [llm.get_input_embeddings(), llm.get_output_embeddings()]
    wanted = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return {name: parameter for name, parameter in llm.named_parameters() if id(parameter) in wanted}
