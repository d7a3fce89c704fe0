"""Predicted peak memory of a device, in closed form: what lives at each moment of a step. No torch, ray, mlflow.

Every term is counted in tensors that exist (`benchmarks/memory_plan.py` measures them all), none is fitted. Symbols: c
bytes of the dtype that computes (2 or 4), T tokens of a micro-batch, H hidden size, Q and K all query and key heads, I
intermediate size, L layers, V vocabulary rows, W shards.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from backbones.adaptation import Lora
from backbones.spec import BackboneSpec
from orchestrator.hardware import GIB
from orchestrator.spec_files.spec import Placement, Recipe

Moment = Literal["loss", "first layer", "last layer", "reduction", "embedding", "root", "update"]

MASTER = 4  # bytes: weights, gradients and what is reduced are fp32
# Softmax, its gradient and the gradient of the negative log-likelihood, fp32 each, are alive together in the backward
# pass of torch's cross entropy.
LOGIT_BYTES = 12
# Queries and keys are normalised before they meet: each keeps what a norm keeps.
_NORMALISED_HEADS = ("Qwen3ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM")
_PROJECTIONS = {"q_proj": "HQ", "k_proj": "HK", "v_proj": "HK", "o_proj": "QH", "up_proj": "HI", "down_proj": "IH"}


@dataclass(frozen=True)
class MemoryPrediction:
    """GiB of one device at its peak. `moment` says when that is; the terms after it are of that moment.

    `absent` is what of the gradients does not exist yet: with one micro-batch a step, none does while the loss is
    computed.
    """

    weights: float
    gradients: float
    optimizer: float
    moment: Moment
    gathered: float  # parameters of whole FSDP units, in the dtype that computes
    reducing: float  # gradients of whole units, on their way to the shards
    activations: float
    logits: float
    absent: float

    @property
    def states(self) -> float:
        """Weights, gradients and optimizer state: what a device holds whatever the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def working(self) -> float:
        """What the peak needs beside them."""
        return self.gathered + self.reducing + self.activations + self.logits - self.absent

    @property
    def total(self) -> float:
        return self.states + self.working


def predict_memory(
    spec: BackboneSpec,
    recipe: Recipe,
    placement: Placement,
    micro_batch_size: int,
    *,
    checkpointing: bool | str | None = None,
    reshard_after_forward: bool = True,
    compiled: bool = False,
) -> MemoryPrediction:
    """The largest of the moments of a step, once the optimizer has its state.

    `checkpointing` is the recipe's unless given: True (`auto`, until it is decided), False, or selective. Without
    `reshard_after_forward` every unit stays gathered until its backward pass; `compiled` layers keep inputs and outputs
    of their norms in the dtype that computes, and no copies.
    """
    kept = recipe.activation_checkpointing if checkpointing is None else checkpointing
    step = _Step(spec, recipe, placement, micro_batch_size, kept, reshard_after_forward, compiled)
    moment, terms = max(step.moments().items(), key=lambda one: sum(one[1][:4]) - one[1][4])
    gathered, reducing, activations, logits, absent = (size / GIB for size in terms)
    return MemoryPrediction(
        weights=step.weights / GIB,
        gradients=step.gradients / GIB,
        optimizer=step.optimizer / GIB,
        moment=moment,
        gathered=gathered,
        reducing=reducing,
        activations=activations,
        logits=logits,
        absent=absent,
    )


def logits_positions(spec: BackboneSpec, tokens: int) -> int:
    """How many positions of a micro-batch have their logits at once: all of them."""
    return tokens


@dataclass(frozen=True)
class _Step:
    """One optimizer step of a rank; every property is bytes unless its name says otherwise."""

    spec: BackboneSpec
    recipe: Recipe
    placement: Placement
    rows: int
    checkpointing: bool | str
    reshards: bool
    compiled: bool

    def moments(self) -> dict[Moment, tuple[float, float, float, float, float]]:
        """Gathered, reducing, activations, logits, absent gradients. Sources: FSDP2's `_fsdp_param_group.py`."""
        root, layer, c = self.root * self.c, self.layer * self.c, self.c
        ahead = layer if self.shards > 1 else 0  # the next unit is gathered while this one computes
        backward = layer + ahead if self.reshards else self.spec.architecture.num_layers * layer
        head, unit = c * self.learning_head, self.learning_of_a_layer
        all_layers = unit * self.learning_layers
        not_yet = 0.0 if self.accumulates else MASTER / self.shards
        buffer = MASTER * unit  # what the unit before is reduced from, until the next one is
        again = MASTER / self.shards if self.accumulates else 0.0  # a new part, before it is added to the old one
        recomputed = self.whole_layer if self.checkpointing else 0.0
        learned = all_layers + self.learning_root
        return {
            "loss": (
                root if self.reshards else root + self.spec.architecture.num_layers * layer,
                0, self.kept + self.kept_by_head, self.logits, not_yet * learned,
            ),
            "first layer": (root + backward, head, self.kept + recomputed + self.workspace, 0, not_yet * learned),
            "last layer": (
                root + layer, head + buffer, self.whole_layer + self.workspace + self.hidden, 0,
                not_yet * (unit + self.learning_root),
            ),
            "reduction": (
                root + ahead, head + (c + MASTER + again) * unit, self.hidden, 0, not_yet * self.learning_root
            ),
            "embedding": (
                root, c * (self.learning_root + self.tied_gradient) + buffer, self.hidden, 0,
                not_yet * self.learning_root,
            ),
            "root": (0, (c + MASTER + again) * self.learning_root, 0, 0, 0),
            "update": (0, 2 * MASTER * self.largest_learning / self.shards, 0, 0, 0),
        }  # fmt: skip

    # --- what is resident, divided by the shards ---

    @property
    def weights(self) -> float:
        """fp32 master weights, adapters included."""
        adapters = self.learning_of_a_layer * self.spec.architecture.num_layers if self.kind == "lora" else 0
        return MASTER * (self.spec.parameters + adapters) / self.shards

    @property
    def gradients(self) -> float:
        """fp32, of what learns."""
        return MASTER * self.learning / self.shards

    @property
    def optimizer(self) -> float:
        """What the recipe's optimizer keeps of each number that learns."""
        return self.recipe.optimizer.state_bytes * self.learning / self.shards

    # --- what grows with the batch ---

    @property
    def logits(self) -> float:
        """fp32, of the positions whose logits are alive together."""
        return LOGIT_BYTES * self.spec.architecture.vocab_size * logits_positions(self.spec, self.tokens)

    @property
    def hidden(self) -> float:
        """One hidden state of every token, in the dtype that computes."""
        return self.c * self.tokens * self.spec.architecture.hidden_size

    @property
    def kept(self) -> float:
        """What all layers keep from their forward to their backward pass."""
        layers = self.spec.architecture.num_layers
        masks = self.tokens * self.recipe.sequence_length if self.is_masked else 0
        if self.checkpointing == "selective":
            return layers * self.tokens * self.c * self._results + masks
        if self.checkpointing:
            return layers * self.hidden + masks
        learning = self.learning_layers
        frozen = self.tokens * self._kept_values(matrices_learn=False)
        return learning * self.whole_layer + (layers - learning) * frozen + self.hidden + masks

    @property
    def kept_by_head(self) -> float:
        """The last norm's input and output."""
        return self.tokens * self._norm(self.spec.architecture.hidden_size, self.kind == "full", self.kind != "lora")

    @property
    def whole_layer(self) -> float:
        """Everything that one layer, in which something learns, keeps for its backward pass."""
        return self.tokens * self._kept_values(matrices_learn=self.kind != "bias_only")

    @property
    def workspace(self) -> float:
        """Gradients inside a layer at its fullest: of the MLP's two products and a hidden state, and of a matrix."""
        a = self.spec.architecture
        matrix = a.hidden_size * a.intermediate_size if self.kind in ("full", "last_layer") else 0
        return self.c * (self.tokens * (2 * a.intermediate_size + a.hidden_size) + matrix)

    @property
    def is_masked(self) -> bool:
        """Whether packed rows are kept apart by a mask of all pairs; kernels that are told lengths have none."""
        on_cpu = self.placement.gpus_per_worker == 0
        masks = self.recipe.attention in ("eager", "sdpa") or (self.recipe.attention == "auto" and on_cpu)
        return self.recipe.packing and masks

    def _kept_values(self, *, matrices_learn: bool) -> float:
        """Bytes of a token in one layer: norms, attention, MLP; the inputs of matrices only where those learn."""
        a, c = self.spec.architecture, self.c
        queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        norms_learn = matrices_learn and self.kind != "lora"
        norms = 2 * self._norm(a.hidden_size, norms_learn, matrices_learn)
        if self.spec.llm_cls in _NORMALISED_HEADS:
            norms += self._norm(queries + keys, norms_learn, False)
        attention = c * 4 * queries + MASTER * a.num_heads  # keys and values are repeated; the log of each sum is kept
        if self.is_masked:
            attention += c * self.recipe.sequence_length
        inner = 3 if self.is_gated else 1
        mlp = c * a.intermediate_size * (inner + (1 if matrices_learn else 0))
        return norms + attention + mlp + self._kept_by_adapters

    @property
    def _kept_by_adapters(self) -> float:
        """What lora keeps of a token: the result of each A, and behind a dropout its mask and its own input."""
        if self.lora is None:
            return 0
        dropped = self.c + 1 if self.lora.dropout else 0
        return sum(self.lora.rank * self.c + ins * dropped for ins, _ in self.adapted)

    def _norm(self, size: int, learns: bool, feeds: bool) -> float:
        """Bytes of a token: an RMS norm's fp32 input, its result before the weights, and what it feeds to matrices."""
        if self.compiled:
            return self.c * size * (1 + feeds)
        return size * ((MASTER if self.is_gated else self.c) + self.c * (learns and self.is_gated) + self.c * feeds)

    @property
    def _results(self) -> float:
        """Values of a token that selective checkpointing keeps in a layer: of its matrices, its kernel, its input."""
        a = self.spec.architecture
        queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        adapters = sum(self.lora.rank + outs for _, outs in self.adapted) if self.lora else 0
        gates = 2 if self.is_gated else 1
        return 3 * a.hidden_size + 2 * queries + 2 * keys + gates * a.intermediate_size + adapters

    # --- how many numbers: units, and what of them learns ---

    @cached_property
    def kind(self) -> str:
        return self.recipe.adaptation.kind

    @property
    def lora(self) -> Lora | None:
        return self.recipe.adaptation.lora

    @property
    def c(self) -> int:
        return 2 if self.recipe.precision == "bf16" else 4

    @property
    def shards(self) -> int:
        return self.placement.parallel.shard

    @property
    def tokens(self) -> int:
        return self.rows * self.recipe.sequence_length

    @property
    def accumulates(self) -> bool:
        """Whether gradients of an earlier micro-batch are there while another one is computed."""
        return self.placement.parallel.rows_of_a_rank(self.recipe.global_batch_size) > self.rows

    @property
    def embedding(self) -> int:
        return self.spec.architecture.vocab_size * self.spec.architecture.hidden_size

    @property
    def root(self) -> float:
        """The root unit: embedding and head."""
        return self.embedding * (1 if self.spec.architecture.tied_embeddings else 2)

    @property
    def layer(self) -> float:
        """The unit of one decoder layer."""
        adapters = self.learning_of_a_layer if self.kind == "lora" else 0
        return max(self.spec.parameters - self.root, 0) / self.spec.architecture.num_layers + adapters

    @property
    def learning_root(self) -> float:
        return self.root if self.kind in ("full", "last_layer") else 0

    @property
    def learning_head(self) -> float:
        """Its gradient is there from the loss on, until the root is reduced at the end."""
        return self.embedding if self.learning_root else 0

    @property
    def tied_gradient(self) -> float:
        """The gradient of a tied embedding is a second one, which is added to the head's."""
        return self.embedding if self.learning_root and self.spec.architecture.tied_embeddings else 0

    @property
    def learning_layers(self) -> int:
        return 1 if self.kind == "last_layer" else self.spec.architecture.num_layers

    @cached_property
    def learning_of_a_layer(self) -> float:
        """Numbers that learn in a layer in which something learns."""
        a = self.spec.architecture
        queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        if self.lora is not None:
            return sum(self.lora.rank * (ins + outs) for ins, outs in self.adapted)
        if self.kind == "bias_only":
            return queries + 2 * keys + a.intermediate_size + 4 * a.hidden_size
        return max(self.spec.parameters - self.root, 0) / a.num_layers

    @property
    def learning(self) -> float:
        return self.learning_root + self.learning_of_a_layer * self.learning_layers

    @property
    def largest_learning(self) -> float:
        return max(self.embedding if self.learning_root else 0, self.learning_of_a_layer / 4)

    @property
    def adapted(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of a layer that lora adapts; names that only some families use count as
        every matrix."""
        a = self.spec.architecture
        sizes = {
            "H": a.hidden_size, "Q": a.num_heads * a.head_dim, "K": a.num_kv_heads * a.head_dim,
            "I": a.intermediate_size,
        }  # fmt: skip
        matrices = {**_PROJECTIONS, **({"gate_proj": "HI"} if self.is_gated else {})}
        wanted = set(self.lora.target_modules or ()) if self.lora is not None else set()
        names = wanted if wanted and wanted <= matrices.keys() else matrices.keys()
        return [(sizes[matrices[name][0]], sizes[matrices[name][1]]) for name in names]

    @cached_property
    def is_gated(self) -> bool:
        """Whether a layer multiplies a gate with its MLP: three matrices and RMS norms, else two and layer norms."""
        a = self.spec.architecture
        attention = 2 * a.hidden_size * a.head_dim * (a.num_heads + a.num_kv_heads)
        whole = max(self.spec.parameters - self.root, 0) / a.num_layers
        return whole - attention > 2.5 * a.hidden_size * a.intermediate_size
