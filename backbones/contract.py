"""What a backbone must offer: to the trainer (`TrainableBackbone`), and to OpenVLA and Prismatic (`LLMBackbone`).

Our classes offer both. The first is what the orchestrator calls and no more; the second is upstream's, name by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from backbones.attention import AttentionChoice
from backbones.inputs import Example, Inputs, PlacedInputs
from backbones.prompting import PromptBuilder
from backbones.tokenizer import TokenizerRows

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

    from backbones.loading import StoredNames
    from backbones.spec import VisionTower
    from backbones.vision_language.processor import Processor


Part = Literal["language", "connector", "vision", "unused"]  # unused: no loss depends on it


class TrainableBackbone(Protocol):
    """A language model that the orchestrator adapts, shards, fills, trains, scores and exports."""

    identifier: str
    llm: PreTrainedModel  # what is sharded, trained and saved
    tokenizer: PreTrainedTokenizerBase
    attention: AttentionChoice
    weights_read: str  # how the weights came in, for the record
    stored_names: "StoredNames"

    def __call__(self, **arguments: Any) -> CausalLMOutputWithPast:
        """The forward pass, with what `collate` made and `use_cache=False`."""
        ...

    def collate(self, rows: Sequence[Sequence[Example]], width: int | None = None) -> Inputs:
        """Examples as the forward pass takes them, in rows of `width` positions, or as long as the longest.

        Whatever else a model looks at goes into `extras`.
        """
        ...

    def as_processed(self, example: Example) -> Mapping[str, np.ndarray]:
        """What the class of transformers is given for one example elsewhere, by its own processor."""
        ...

    @property
    def image_processor(self) -> "BaseImageProcessor | None":
        """What gives others than `collate` the same pixels, of images of any size; None for a model of text alone."""
        ...

    @property
    def processor(self) -> "Processor | None":
        """What gives others the same ids and pixels in one call; None where no class of transformers can."""
        ...

    def nats(self, inputs: PlacedInputs, chunks: int) -> torch.Tensor:
        """Negative log-likelihood of every labelled position, (N,), with the logits of one chunk alive at a time."""
        ...

    def logits(self, inputs: PlacedInputs) -> torch.Tensor:
        """Logits at every labelled position, (N, V)."""
        ...

    def load_weights(self, device: torch.device) -> None:
        """Fills a sharded model that was laid out without weights; each rank reads its own rows."""
        ...

    def enable_gradient_checkpointing(self, selective: bool = False) -> None:
        """Recomputes activations in the backward pass; `selective`: not those of matrices and attention kernels."""
        ...

    @property
    def tokenizer_rows(self) -> TokenizerRows:
        """Rows of the embedding, and which of them tokens have."""
        ...

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """All of one class, as many as the config says."""
        ...

    @property
    def transformer_layer_cls(self) -> type[nn.Module]:
        """Their class: what is sharded as a unit."""
        ...

    @property
    def vision_layers(self) -> "Sequence[tuple[VisionTower, Sequence[nn.Module]]]":
        """Each vision tower with its layers, which are sharded as units too; none for a model of text alone."""
        ...

    def part_of(self, name: str) -> Part:
        """Which part of the model a parameter of `llm` belongs to, by its name."""
        ...

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        """Modules that learn when only the last layer does."""
        ...

    @property
    def pad_token_id(self) -> int:
        """PAD's id, distinct from EOS and BOS."""
        ...

    @property
    def effective_vocab_size(self) -> int:
        """Ids below this one can be tokens."""
        ...


class LLMBackbone(nn.Module, ABC):
    """A language model with its tokenizer and prompt format. `.llm` is what is sharded, trained and saved.

    The attribute name `llm` is part of the checkpoint format: state-dict keys begin with `llm.`.
    Contract: openvla/openvla, prismatic/models/backbones/llm/base_llm.py.
    """

    def __init__(self, llm_backbone_id: str) -> None:
        super().__init__()
        self.identifier = llm_backbone_id
        # Set by every constructor before it returns, so users need not ask for None.
        self.llm: PreTrainedModel = None
        self.tokenizer: PreTrainedTokenizerBase = None

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, PAD included."""
        return self.tokenizer

    @abstractmethod
    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        """An FSDP1 auto-wrap policy that wraps each decoder layer."""

    @abstractmethod
    def enable_gradient_checkpointing(self, selective: bool = False) -> None:
        """Recomputes activations in the backward pass; `selective`: not those of matrices and attention kernels."""

    @abstractmethod
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """The model's forward pass; the model shifts labels."""

    @abstractmethod
    def embed_input_ids(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Input embeddings, [batch, length, embed_dim]."""

    @property
    @abstractmethod
    def prompt_builder_fn(self) -> type[PromptBuilder]:
        """The prompt builder's class."""

    @property
    @abstractmethod
    def transformer_layer_cls(self) -> type[nn.Module]:
        """The decoder layer's class, for wrapping and activation checkpointing."""

    @property
    @abstractmethod
    def half_precision_dtype(self) -> torch.dtype:
        """The dtype of mixed precision."""

    @property
    @abstractmethod
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        """Modules that learn when only the last layer does."""

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings."""
        return int(self.llm.config.get_text_config().hidden_size)

    @property
    def pad_token_id(self) -> int:
        """PAD's id, distinct from EOS and BOS."""
        return int(self.tokenizer.pad_token_id)
