"""`HFCausalLLMBackbone`: a backbone around a causal language model of transformers.

Over 300 lines: what upstream has in one class, whose subclasses override any of it, is read in one file.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import (
    AutoConfig,
    BaseImageProcessor,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from backbones.attention import AttentionChoice, resolve_attention
from backbones.contract import LLMBackbone, Part
from backbones.inputs import Example, Inputs, PlacedInputs, images_of, make_inputs
from backbones.labelled import add_methods, nats_of
from backbones.llm_class import check_class, concrete_class
from backbones.loading import StoredNames, WeightsError, fetch_checkpoint, fill, raise_unless_whole
from backbones.parameters import embedding_parameters
from backbones.prompting.codec import adds_bos
from backbones.prompting.image_tokens import CodecError
from backbones.recomputation import checkpointing_arguments
from backbones.spec import VisionTower
from backbones.tokenizer import LoadedTokenizer, TokenizerRows, count_rows, end_of_ids, read_tokenizer

if TYPE_CHECKING:
    from backbones.vision_language.processor import Processor


class HFCausalLLMBackbone(LLMBackbone, ABC):
    """Loads config, weights (fp32) and tokenizer in the order of openvla/openvla's base_llm.py.

    A subclass then adds its PAD token and calls `resize_embeddings`, or resizes the model itself, as those written for
    upstream do. `llm_cls` may be AutoModelForCausalLM. Class attributes are its switches: `revision` pins the hub,
    `requires_bos` is False for tokenizers that add no BOS by themselves, `decoder_layer_cls` is the expected name of
    the decoder layer's class. Constructed inside `with torch.device("meta")`, it is laid out without its weights: shard
    it, then call `load_weights`. Raises WeightsError for missing or left-over weights.
    """

    revision: str | None = None
    requires_bos: bool = True
    decoder_layer_cls: str | None = None
    weights_read: str  # how the weights came in, for the record

    def __init__(
        self,
        llm_backbone_id: str,
        llm_family: str,
        llm_cls: type,  # a PreTrainedModel, or AutoModelForCausalLM
        hf_hub_path: str,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = False,
    ) -> None:
        super().__init__(llm_backbone_id)
        self.llm_family = llm_family
        self.llm_max_length = llm_max_length
        self.inference_mode = inference_mode
        self._rows: TokenizerRows | None = None
        model_cls = concrete_class(llm_cls, hf_hub_path, **self._hub_options(hf_hub_path, hf_token))
        self.attention = self._choose_attention(model_cls, use_flash_attention_2)
        self._folder: Path | None = None  # of weights that are still to be read
        self._fresh_rows: dict[str, torch.Tensor] = {}
        self.llm = self.load_llm(model_cls, hf_hub_path, hf_token)
        add_methods(self.llm)
        self.stored_names = StoredNames.of(self.llm)
        self._set_greedy_decoding()
        self.llm.config.get_text_config().use_cache = inference_mode
        if not inference_mode:
            self.let_gradients_in()
        self.load_tokenizer(hf_hub_path, hf_token)

    def let_gradients_in(self) -> None:
        """Has the embedding's output take gradients: checkpointed layers need it when the embedding is frozen."""
        self.llm.enable_input_require_grads()

    def load_tokenizer(self, hf_hub_path: str, hf_token: str | None) -> None:
        """The tokenizer, which must pad on the right and, where the spec says so, put BOS in front of a text."""
        self.loaded_tokenizer = self._read_tokenizer(hf_hub_path, hf_token)
        self.tokenizer = self.loaded_tokenizer.tokenizer
        self._ids_read = end_of_ids(self.tokenizer)
        assert self.tokenizer.padding_side == "right", "Tokenizer `padding_side` is not set to `right`!"
        self._check_bos()

    def load_llm(self, llm_cls: type[PreTrainedModel], hf_hub_path: str, hf_token: str | None) -> PreTrainedModel:
        """The model in fp32: pretrained weights for training, random ones for inference (a checkpoint follows)."""
        options = self._hub_options(hf_hub_path, hf_token)
        config = AutoConfig.from_pretrained(hf_hub_path, **options)
        check_class(self.identifier, llm_cls, config)
        common = {"dtype": torch.float32, "attn_implementation": self.attention.prepare()}
        if self.inference_mode:
            self.weights_read = "none: random, for a checkpoint to fill"
            return llm_cls._from_config(config, **common)
        if torch.get_default_device().type == "meta":
            with torch.device("cpu"), init_empty_weights():  # buffers are real: no checkpoint holds them
                llm = llm_cls._from_config(config, **common)
            llm.tie_weights()  # laying out gave each name a parameter of its own
            if not StoredNames.of(llm).are_fused:
                self._folder = fetch_checkpoint(hf_hub_path, revision=self.revision, hf_token=hf_token)
                llm.generation_config = _generation_config(llm, self._folder)
                self.weights_read = "each rank its own rows"
                return llm
        with torch.device("cpu"):
            llm, info = llm_cls.from_pretrained(
                hf_hub_path, config=config, use_safetensors=True, output_loading_info=True, **common, **options
            )
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        raise_unless_whole(self.identifier, *(info[kind] for kind in kinds))
        self.weights_read = "each rank the whole checkpoint"
        return llm

    def load_weights(self, device: torch.device) -> None:
        """Fills a sharded backbone that was laid out on meta; each rank reads its own rows. Raises WeightsError."""
        if self._folder is not None:
            fill(self.llm, self._folder, device, self.stored_names, self._fresh_rows)

    def resize_embeddings(self, *, added: int, may_shrink: bool) -> None:
        """Makes the embedding fit the tokenizer, PAD included, and tells the model which id PAD is.

        New rows are drawn as the model initialises its embedding, not as the mean of the others: that is what
        upstream's checkpoints have.
        """
        pad_token_id = self.tokenizer.pad_token_id
        self.llm.config.get_text_config().pad_token_id = pad_token_id
        if self.llm.generation_config is not None:
            self.llm.generation_config.pad_token_id = pad_token_id
        current = self.llm.get_input_embeddings().weight.shape[0]
        self._rows = count_rows(self.tokenizer, added=added, current=current, may_shrink=may_shrink)
        if self.tokenizer_rows.total != current:
            self.llm.resize_token_embeddings(self.tokenizer_rows.total, mean_resizing=False)
            self._fill_fresh_rows(current)

    def _fill_fresh_rows(self, first: int) -> None:
        """Draws the rows from `first` on; those of a model that is laid out on meta are kept until it is filled.

        From torch's seed, not from where its generator stands: both ways to load a model give the same rows.
        """
        generator = torch.Generator("cpu").manual_seed(torch.initial_seed())
        std = getattr(self.llm.config.get_text_config(), "initializer_range", 0.02)
        for name, parameter in embedding_parameters(self.llm).items():
            shape = (max(len(parameter) - first, 0), *parameter.shape[1:])
            fresh = torch.zeros(shape, device="cpu")
            if parameter.ndim > 1:
                fresh.normal_(0.0, std, generator=generator)
            if parameter.is_meta:
                self._fresh_rows[name] = fresh
            else:
                parameter.data[first:] = fresh

    @property
    def tokenizer_rows(self) -> TokenizerRows:
        """Rows of the embedding, as `resize_embeddings` made them, or as a subclass did by itself.

        Raises WeightsError where a subclass added tokens and left the model without rows for them.
        """
        if self._rows is not None:
            return self._rows
        needed = end_of_ids(self.tokenizer)
        total = self.llm.get_input_embeddings().weight.shape[0]
        if needed > total:
            raise WeightsError(
                f"{self.identifier}: the tokenizer has ids up to {needed - 1}, but the embedding has {total} rows; "
                "resize the model after tokens are added"
            )
        return TokenizerRows(self._ids_read, needed - self._ids_read, total - needed, total)

    @property
    def effective_vocab_size(self) -> int:
        """Ids below this one can be tokens; rows from here on only pad the matrix."""
        return self.tokenizer_rows.effective_vocab_size

    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        return partial(transformer_auto_wrap_policy, transformer_layer_cls={self.transformer_layer_cls})

    def enable_gradient_checkpointing(self, selective: bool = False) -> None:
        self.llm.activation_checkpointing_enable(checkpointing_arguments(selective))

    def embed_input_ids(self, input_ids: torch.LongTensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.llm.get_input_embeddings()(input_ids)
        return embeddings

    def collate(self, rows: Sequence[Sequence[Example]], width: int | None = None) -> Inputs:
        """The rows as this backbone's forward pass takes them, padded to `width` positions or to the longest.

        Raises CodecError for images: a class that sees has a `collate` of its own.
        """
        if images_of(rows) is not None:
            raise CodecError(f"{self.identifier} reads text alone, and an example has images; choose one that sees")
        return make_inputs(rows, self.pad_token_id, width)

    def as_processed(self, example: Example) -> dict[str, np.ndarray]:
        """What the class of transformers is given for one example elsewhere; here what `collate` makes of it."""
        inputs = self.collate([[example]])
        own = {"input_ids": inputs.input_ids_BT, "position_ids": inputs.position_ids_BT}
        return {**own, **inputs.extras, **inputs.token_extras}

    @property
    def image_processor(self) -> BaseImageProcessor | None:
        """What gives others than `collate` the same pixels; None here: it reads text alone."""
        return None

    @property
    def processor(self) -> "Processor | None":
        """What gives others the same ids and pixels in one call; None here, where the tokenizer does."""
        return None

    @property
    def reads_labelled(self) -> bool:
        """Whether `llm` may be asked for labelled positions alone; not where a class changes its forward pass."""
        return type(self).forward is HFCausalLLMBackbone.forward

    def nats(self, inputs: PlacedInputs, chunks: int) -> torch.Tensor:
        """Negative log-likelihood of every labelled position, (N,), with the logits of one chunk alive at a time.

        A class with a forward pass of its own is asked for all logits by that one.
        """
        if not self.reads_labelled:
            logits_BTV = self(**inputs.arguments, use_cache=False).logits
            return nats_of(logits_BTV.flatten(0, 1)[inputs.positions_N], inputs.targets_N)
        nats_N: torch.Tensor = self.llm.labelled_nats(inputs.positions_N, inputs.targets_N, chunks, **inputs.arguments)
        return nats_N

    def logits(self, inputs: PlacedInputs) -> torch.Tensor:
        """Logits at the labelled positions alone, (N, V)."""
        if not self.reads_labelled:
            logits_BTV: torch.Tensor = self(**inputs.arguments, use_cache=False).logits
            return logits_BTV.flatten(0, 1)[inputs.positions_N]
        logits_NV: torch.Tensor = self.llm.labelled_logits(inputs.positions_N, **inputs.arguments)
        return logits_NV

    def use_attention(self, request: str, dtype: torch.dtype | None = None) -> None:
        """Switches to a kernel that computes in `dtype` (None: half precision). Raises AttentionUnavailableError."""
        dtype = dtype or self.half_precision_dtype
        self.attention = self.find_attention(request, dtype, type(self.llm), self.llm.config, self.inference_mode)
        self.llm.set_attn_implementation(self.attention.prepare())

    @classmethod
    def find_attention(
        cls,
        request: str,
        dtype: torch.dtype,
        llm_cls: type[PreTrainedModel] | None,
        config: PreTrainedConfig | None = None,
        generates: bool = False,
    ) -> AttentionChoice:
        """The kernel for `request` that backbones of this class take. Raises AttentionUnavailableError."""
        return resolve_attention(request, dtype=dtype, llm_cls=llm_cls, config=config, generates=generates)

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
        output: CausalLMOutputWithPast = self.llm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )
        return output

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The list of decoder layers, as many as the config says and all of one class. Raises WeightsError."""
        count = self.llm.config.get_text_config().num_hidden_layers
        expected = self.decoder_layer_cls
        for module in self.llm.get_decoder().modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                classes = {type(layer) for layer in module}
                if len(classes) == 1 and expected in (None, classes.pop().__name__):
                    return module
        wanted = f"{count} layers of class {expected}" if expected else f"{count} layers of one class"
        found = f"{self.identifier}: {type(self.llm).__name__} has no list of {wanted}"
        raise WeightsError(f"{found}; correct decoder_layer_cls in its spec")

    @property
    def transformer_layer_cls(self) -> type[nn.Module]:
        return type(self.decoder_layers[0])

    @property
    def vision_layers(self) -> Sequence[tuple[VisionTower, Sequence[nn.Module]]]:
        """Each vision tower with its layers; none here: it reads text alone."""
        return ()

    def part_of(self, name: str) -> Part:
        """Which part of the model a parameter of `llm` belongs to, by its name."""
        return "language"

    @property
    def half_precision_dtype(self) -> torch.dtype:
        return torch.bfloat16

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        return self.llm.get_input_embeddings(), self.decoder_layers[-1], self.llm.get_output_embeddings()

    def _choose_attention(self, llm_cls: type[PreTrainedModel], flash: bool) -> AttentionChoice:
        """Asking for flash attention means "the best kernel here", as every shipped id asks for it."""
        request = "auto" if flash else "sdpa" if llm_cls._supports_sdpa else "eager"
        return self.find_attention(request, self.half_precision_dtype, llm_cls, generates=True)

    def _set_greedy_decoding(self) -> None:
        if isinstance(self.llm, GenerationMixin) and self.llm.generation_config is not None:
            self.llm.generation_config.update(do_sample=False, temperature=1.0, top_p=1.0)

    def _hub_options(self, hf_hub_path: str, hf_token: str | None) -> dict[str, Any]:
        if Path(hf_hub_path).is_absolute():
            return {"local_files_only": True, "trust_remote_code": False}
        return {"revision": self.revision, "token": hf_token, "trust_remote_code": False}

    def _read_tokenizer(self, hf_hub_path: str, hf_token: str | None) -> LoadedTokenizer:
        return read_tokenizer(
            hf_hub_path,
            family=self.llm_family,
            max_length=self.llm_max_length,
            revision=self.revision,
            hf_token=hf_token,
        )

    def _check_bos(self) -> None:
        if self.requires_bos and not adds_bos(self.tokenizer):
            raise AssertionError(
                f"Default Tokenizer of type `{type(self.tokenizer)}` does not automatically prefix inputs with BOS "
                "token!\nPlease read the comment in `base_llm.py` for more information!"
            )


def _generation_config(llm: PreTrainedModel, folder: Path) -> GenerationConfig | None:
    """What `from_pretrained` would have set: the folder's own file, or the model's defaults."""
    if not (folder / "generation_config.json").is_file():
        return llm.generation_config
    return GenerationConfig.from_pretrained(folder, local_files_only=True)
