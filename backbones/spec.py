"""What is known about a backbone before anything is loaded. No torch, no transformers."""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from typing_extensions import TypeAliasType

from backbones.prompting.formats import PromptVariant

# What a config.json holds, in a form that can be hashed and compared: an object is a tuple of (key, value), a list a
# tuple of anything else.
ConfigValue = TypeAliasType(
    "ConfigValue", "bool | int | float | str | tuple[tuple[str, ConfigValue], ...] | tuple[ConfigValue, ...] | None"
)

# The prompts of most base models and of most chat models; backbones/prompting/formats.py knows the others too.
PURE = "PurePromptBuilder"
CHAT = "ChatTemplatePromptBuilder"

_BUILTIN = "builtin:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BUILTIN_FOLDER = Path(__file__).parent / "families" / "tiny_tokenizers"
_IDENTITY_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder-only transformer, as its config.json states them."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding before any PAD is added
    tied_embeddings: bool


@dataclass(frozen=True)
class VisionTower:
    """Sizes of a vision transformer, as its config.json states them."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int  # pixels a side
    parameters: int  # of the whole tower, without the connector
    layer_cls: str  # the class of its layers; of modules of this class there are `num_layers`


# Pillow's numbers of its filters, by which files of image processors name them.
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True)
class Vision:
    """How a backbone sees: its towers, the one size that every image is resized to, and the tokens an image takes."""

    towers: tuple[VisionTower, ...]
    image_size: int  # pixels a side: every image is resized to this square
    tokens_per_image: int  # placeholders that one image takes, without frame tokens
    connector_parameters: int  # between towers and language model
    mean: tuple[float, ...]  # of each channel, in units of 0 to 1
    std: tuple[float, ...]
    resample: str = "bicubic"  # Pillow's name of the filter that resizes
    # The token whose embedding an image feature replaces. None: an id that no token has, behind the tokenizer's own
    placeholder: str | None = "<image>"
    frame: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # tokens before and behind an image's placeholders
    # turn: in front of the text of its turn; bos: behind the first token, which is BOS; start: before everything
    place: Literal["turn", "bos", "start"] = "turn"
    around: tuple[str, str] = ("", "")  # in a turn, text before and behind each image's tokens
    packs: bool = True  # False: its attention mask would let packed examples see each other


TowerFamily = Literal["siglip", "dinov2"]


@dataclass(frozen=True)
class Tower:
    """A vision transformer with weights of its own, which a fused backbone has one or two of."""

    family: TowerFamily
    sizes: VisionTower
    image_size: int  # pixels a side
    registers: int  # tokens beside the class token and the patches
    mean: tuple[float, ...]  # of red, green, blue, in units of 0 to 1
    std: tuple[float, ...]
    hf_hub_path: str | None = None  # hub id or absolute folder; None: drawn from the seed
    revision: str | None = None


@dataclass(frozen=True)
class Fusion:
    """What a fused backbone is put together of."""

    eyes: str  # the name of its towers
    towers: tuple[Tower, ...]
    projector: str
    language: "BackboneSpec"
    is_whole: bool = False  # its parts are one model in the language backbone's folder, as an export has them


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone id and everything its behaviour depends on: declared here, never read out of the id."""

    backbone_id: str
    family: str
    hf_hub_path: str  # hub id, absolute folder, or "builtin:NAME" for a tokenizer that ships with this package
    parameters: int  # total, before PAD rows are added
    prompt_builder: str
    context_length: int
    licence: str
    llm_cls: str  # class in transformers
    architecture: Architecture
    revision: str | None = None  # 40 hex digits; None is a folder, or the hub's main branch: see `is_pinned`
    prompt_variant: PromptVariant = "standard"
    pad_token: str | None = None  # None: keep a PAD that is neither EOS nor BOS, else add "<PAD>"
    requires_bos: bool = False  # the tokenizer must put BOS in front of a text by default
    decoder_layer_cls: str | None = None  # None: the class of the decoder layers that are found
    backbone_cls: str = "backbones.causal_lm:CausalLMBackbone"  # module:class
    gated: bool = False
    config: tuple[tuple[str, ConfigValue], ...] = ()  # what else a model of these sizes needs in its config.json
    extra_tokens: int = 0  # tokens added behind PAD, "<|extra_0|>" and so on, whose rows the model may have to spare
    vision: Vision | None = None  # None: it reads text alone
    fusion: Fusion | None = None  # None: it is one model

    @property
    def seeing_parameters(self) -> int:
        """Of vision towers and connector."""
        if self.vision is None:
            return 0
        return self.vision.connector_parameters + sum(tower.parameters for tower in self.vision.towers)

    @property
    def is_pinned(self) -> bool:
        """Whether the weights cannot change under the id: a commit of the hub, or a folder whose bytes are hashed."""
        towers = self.fusion.towers if self.fusion else ()
        return all(
            Path(path).is_absolute() or path.startswith(_BUILTIN) or _COMMIT.fullmatch(revision or "")
            for path, revision in [(self.hf_hub_path, self.revision), *((t.hf_hub_path, t.revision) for t in towers)]
            if path is not None
        )

    @property
    def is_builtin(self) -> bool:
        """Whether its tokenizer ships with this package."""
        return self.hf_hub_path.startswith(_BUILTIN)

    @property
    def folder(self) -> Path | None:
        """The folder this backbone is loaded from without any network, or None for the hub."""
        if self.is_builtin:
            return _BUILTIN_FOLDER / self.hf_hub_path.removeprefix(_BUILTIN)
        path = Path(self.hf_hub_path)
        return path if path.is_absolute() else None

    @property
    def source(self) -> str:
        """What transformers' `from_pretrained` gets."""
        return str(self.folder or self.hf_hub_path)

    @property
    def is_reference(self) -> bool:
        """Whether it was named by a folder or a hub repository, not registered under an id."""
        return self.backbone_id.startswith("hf:")

    @property
    def reference(self) -> str:
        """What `registry.build` takes to make this backbone, from whichever working directory."""
        if self.fusion is not None and not self.fusion.is_whole:
            return f"fused:{self.fusion.eyes}+{self.fusion.language.reference}+{self.fusion.projector}"
        if not self.is_reference:
            return self.backbone_id
        pin = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.folder or self.hf_hub_path + pin}"

    @cached_property
    def weights_digest(self) -> str | None:
        """SHA-256 over names and contents of a folder's config, weights and tokenizer; None for the hub.

        Reads every byte on first use: about one second per GiB.
        """
        if self.folder is None:
            return None
        paths = {path for pattern in _IDENTITY_FILES for path in self.folder.glob(pattern)}
        digest = hashlib.sha256()
        for path in sorted(paths):
            with open(path, "rb") as stream:
                digest.update(f"{path.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()
