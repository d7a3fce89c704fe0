"""What the proofs look at: a backbone's tokenizer, its sharded model, and a stock model beside it on rank 0."""

import os
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from torch import nn
from torch.distributed.tensor import DTensor

from backbones.contract import TrainableBackbone
from backbones.inputs import Example
from backbones.loading import WeightsError
from backbones.parameters import base_name, is_adapter
from backbones.random_init import RandomInitBackbone
from backbones.registry import build
from backbones.spec import BackboneSpec
from orchestrator.certificate.first_layers import KEPT_LAYERS, write_first_layers
from orchestrator.parallel import Mesh
from orchestrator.spec_files.spec import Recipe
from orchestrator.training.loss import all_logits, place
from orchestrator.training.model.sharding import build_sharded

LONGEST = 512  # tokens of any prompt here
SEED = 0
USABLE_SHARE = 0.8
CONVERSATIONS: "list[Turns]" = [
    [("user", "What is the capital of France?"), ("assistant", "Paris")],
    [("system", "Answer in one word."), ("user", "Is 7 a prime?"), ("assistant", "Yes")],
    [("user", "Say blue."), ("assistant", "blue"), ("user", "Now red."), ("assistant", "red")],
]
# (rate, power): AdamW learns a few words by heart at rate / width ** power. A wider matrix takes smaller steps
# (arXiv:2203.03466), an adapter of constant rank less so.
LEARNING_RATE = {
    "full": (0.3, 1.0),
    "last_layer": (0.3, 1.0),
    "lora": (0.03, 0.5),
    "bias_only": (0.03, 0.0),
    "connector": (0.3, 1.0),
}

Result = TypeVar("Result")
Turns = list[tuple[str, str]]
Model = tuple[TrainableBackbone, list[nn.Module]]


@dataclass
class Subject:
    """A backbone under proof; the proofs fill it as they go. Every method is collective."""

    spec: BackboneSpec
    recipe: Recipe
    mesh: Mesh
    work_folder: Path  # on storage that all ranks share; for the first layers of a large model
    memory: float  # bytes that a rank may use
    tokenizer: Any = None
    codec: Any = None
    codec_error: Exception | None = None
    structure: TrainableBackbone | None = None  # laid out, without weights
    stock: Any = None  # rank 0 alone
    is_cut: bool = False  # to its first layers
    _model: Model | None = None
    _build_error: WeightsError | None = None

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    @property
    def length(self) -> int:
        """The longest sequence of any proof, tokens."""
        return min(self.spec.context_length or LONGEST, LONGEST)

    @property
    def tolerance(self) -> float:
        """Largest relative difference between two ways to compute one thing."""
        return 1e-5 if self.recipe.precision == "fp32" else 2e-2

    @property
    def has_no_checkpoint(self) -> bool:
        return isinstance(self.structure, RandomInitBackbone)

    @property
    def is_large(self) -> bool:
        """Whether a whole stock model beside the training state would exceed a device's memory."""
        values = 2 if self.recipe.adaptation.is_partial else 4  # of fp32, for each parameter
        needed = 4.0 * self.spec.parameters * (1 + values / self.mesh.dims.shard)
        return (
            self.spec.architecture.num_layers > KEPT_LAYERS
            and not self.has_no_checkpoint
            and needed > USABLE_SHARE * self.memory
        )

    @property
    def model_name(self) -> str:
        """Which model parity, packing and overfit are proved on."""
        return f"its first {KEPT_LAYERS} layers: the whole exceeds a device" if self.is_cut else "the whole model"

    def model(self) -> Model:
        """The sharded model: the whole one, until a large one was cut to its first layers."""
        if self._build_error is not None:
            raise self._build_error
        if self._model is None:
            try:
                self._model = build_sharded(self.spec, self.recipe, self.mesh, seed=SEED)
            except WeightsError as error:
                self._build_error = error
                raise
        return self._model

    def keep_first_layers(self) -> None:
        """Replaces a large model by one of its first layers, from here on."""
        self._model = None
        folder = self.work_folder
        fusion = self.spec.fusion
        on_main(self.mesh, lambda: write_first_layers(fusion.language if fusion else self.spec, folder))
        self.is_cut = True

        def first_layers(spec: BackboneSpec) -> BackboneSpec:
            sizes = replace(spec.architecture, num_layers=KEPT_LAYERS)
            return replace(spec, hf_hub_path=str(folder), revision=None, architecture=sizes)

        self.spec = first_layers(replace(self.spec, backbone_id=f"{folder.name}-first-layers"))
        if fusion is not None:
            self.spec = replace(self.spec, fusion=replace(fusion, language=first_layers(fusion.language)))

    def load_stock(self) -> dict[str, list[str]]:
        """Loads the stock model on rank 0, unless it is there; returns what its loader complained of."""
        self.model()  # built by all ranks, before rank 0 goes on alone
        state = self._gathered_state() if self.has_no_checkpoint else {}
        return on_main(self.mesh, lambda: self._load_stock(state))

    def stock_vocabulary(self) -> int:
        """Rows below the tokenizer's own vocabulary that the stock model has: PAD's rows are ours."""
        base = self.model()[0].tokenizer_rows.base
        return on_main(self.mesh, lambda: min(base, int(self.stock.get_input_embeddings().weight.shape[0])))

    def tensors(self) -> int:
        """How many parameters the model has, adapters not counted."""
        return sum(not is_adapter(name) for name, _ in self.model()[0].llm.named_parameters())

    def non_finite_tensors(self) -> list[str]:
        odd = [name for name, tensor in self._gathered() if not torch.isfinite(tensor).all()]
        return on_main(self.mesh, lambda: odd)

    def tensors_unlike_stock(self) -> list[str]:
        """Names of tensors that the checkpoint has otherwise or not at all; rows of one alone do not count."""
        theirs = {} if self.stock is None else dict(self.stock.named_parameters())
        different = []
        seen = set()
        for name, tensor in self._gathered():
            seen.add(name)
            if self.stock is not None:
                other = theirs.get(name)
                if other is None or not _equal_rows(tensor, other.detach()):
                    different.append(name)
        return on_main(self.mesh, lambda: different + sorted(set(theirs) - seen))

    def random_ids(self, vocabulary: int) -> torch.Tensor:
        """Token ids of a fixed seed, [2, at most 64]."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randint(vocabulary, (2, min(64, self.length)), generator=generator).to(self.device)

    def optimizer(self) -> torch.optim.Optimizer:
        backbone, _ = self.model()
        backbone.llm.reshard()  # after a forward pass without a backward one, FSDP shows the root's gathered weights
        trainable = [parameter for parameter in backbone.llm.parameters() if parameter.requires_grad]
        rate, power = LEARNING_RATE[self.recipe.adaptation.kind]
        rate /= self.spec.architecture.hidden_size**power
        return torch.optim.AdamW(trainable, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)

    def images_of(self, turns: Turns) -> list[int]:
        """How many images each turn has: one with the first question, where the backbone sees."""
        first = next(index for index, (role, _) in enumerate(turns) if role == "user")
        return [int(self.spec.vision is not None and index == first) for index in range(len(turns))]

    def example(self, turns: Turns) -> Example:
        """A conversation as it is trained on, with an image of its own where the backbone sees."""
        encoded = self.codec.encode_conversation(turns, self.images_of(turns))
        images = None
        if self.spec.vision is not None:
            shape = (1, *(self.spec.vision.image_size,) * 2, 3)
            draw = np.random.default_rng([SEED, *turns[-1][1].encode()])
            images = draw.integers(0, 256, shape, dtype=np.uint8)
        return Example(np.array(encoded.input_ids), np.array(encoded.is_target), images)

    def generate(self, prompt: Example, count: int) -> list[int]:
        """The `count` most likely tokens after a prompt, one at a time; they count as learned, as an answer does."""
        backbone, _ = self.model()
        given = len(prompt.input_ids)
        ids, answers = prompt.input_ids, prompt.is_learned
        with torch.no_grad():
            for _ in range(count):
                inputs = backbone.collate([[Example(ids, answers, prompt.images)]])
                logits_NV = all_logits(backbone, place(backbone, inputs, self.device))
                ids = np.append(ids, int(logits_NV[-1, : backbone.effective_vocab_size].argmax()))
                answers = np.append(answers, True)
        return [int(token) for token in ids[given:]]

    def close(self) -> None:
        """Lets go of every model and of what was written for them."""
        self._model = self.stock = self.structure = None
        if self.mesh.is_main:
            shutil.rmtree(self.work_folder, ignore_errors=True)

    def _load_stock(self, state: dict[str, torch.Tensor]) -> dict[str, list[str]]:
        backbone, _ = self.model()
        dtype = torch.float32 if self.recipe.precision == "fp32" else torch.bfloat16
        common = {"dtype": dtype, "attn_implementation": backbone.attention.kernel}
        info: dict[str, Any] = {}
        if self.spec.fusion is not None and not self.spec.fusion.is_whole:
            # No class of transformers is all of it: the parts as they are loaded whole, in one process.
            kernel = backbone.attention.kernel
            whole = build(self.spec, max_length=self.length, seed=SEED, attention=kernel, compute_dtype=dtype)
            self.stock = whole.llm.to(dtype)
        elif self.stock is None and state:
            llm_cls = getattr(transformers, self.spec.llm_cls)
            self.stock = llm_cls._from_config(deepcopy(backbone.llm.config), **common)
            with torch.no_grad():
                for name, parameter in self.stock.named_parameters():
                    parameter.copy_(state[name])
        elif self.stock is None:
            where = {"local_files_only": True} if self.spec.folder else {"revision": self.spec.revision}
            auto: Any = transformers.AutoModelForCausalLM
            if self.spec.vision is not None:
                auto = transformers.AutoModelForImageTextToText
            self.stock, info = auto.from_pretrained(
                self.spec.source,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
                **common,
                **where,
            )
        self.stock.to(self.device).eval()
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        return {kind: sorted(map(str, info.get(kind, ()))) for kind in kinds}

    def _gathered_state(self) -> dict[str, torch.Tensor]:
        return dict(self._gathered())

    def _gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the model, whole, under the name it has without adapters."""
        for name, parameter in self.model()[0].llm.named_parameters():
            if not is_adapter(name):
                whole = parameter.detach()
                yield base_name(name), whole.full_tensor() if isinstance(whole, DTensor) else whole


def on_main(mesh: Mesh, work: Callable[[], Result]) -> Result:
    """The main rank's result on every rank, and its error too. Collective."""
    outcome: tuple[Any, str | None] = (None, None)
    if mesh.is_main:
        try:
            outcome = (work(), None)
        except Exception as error:
            mesh.from_main((None, f"{type(error).__name__}: {error}"))
            raise
    result, failure = mesh.from_main(outcome)
    if failure is not None:
        raise RuntimeError(failure)
    found: Result = result
    return found


def usable_memory(mesh: Mesh) -> float:
    """Bytes of memory that one rank may use: its device's, or its share of the machine's; the least of all ranks."""
    if mesh.device.type == "cuda":
        found = float(torch.cuda.mem_get_info(mesh.device)[1])
    else:
        found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / mesh.dims.world
    least = torch.tensor(found, dtype=torch.float64, device=mesh.device)
    mesh.minimum(least)
    return float(least)


def _equal_rows(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two tensors agree in the rows that both have; a resized embedding has more or fewer."""
    if ours.ndim == 0 or theirs.ndim == 0:
        return torch.equal(ours.to(theirs.dtype), theirs)
    shared = min(len(ours), len(theirs))
    return torch.equal(ours[:shared].to(theirs), theirs[:shared])
