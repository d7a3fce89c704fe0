"""How many numbers FSDP gathers at once, and how many of them learn under an adaptation. No torch, ray, mlflow.

Of a vision tower no unit is as large as the root or a decoder layer of any shipped backbone: it counts in sums alone.
"""

from dataclasses import dataclass
from functools import cached_property

from backbones.adaptation import Lora
from backbones.spec import Architecture, BackboneSpec
from orchestrator.spec_files.spec import Adaptation

# Inputs and outputs of a layer's matrices: H hidden size, Q and K all query and key heads, I intermediate size.
_MATRICES = {"q_proj": "HQ", "k_proj": "HK", "v_proj": "HK", "o_proj": "QH", "up_proj": "HI", "down_proj": "IH"}
_GATE = {"gate_proj": "HI"}


@dataclass(frozen=True)
class Units:
    """The root unit (embedding, head, connector) and the decoder layers of a backbone, in numbers, of all ranks."""

    spec: BackboneSpec
    adaptation: Adaptation

    @property
    def sizes(self) -> Architecture:
        return self.spec.architecture

    @property
    def lora(self) -> Lora | None:
        return self.adaptation.lora

    @property
    def embedding(self) -> int:
        return self.sizes.vocab_size * self.sizes.hidden_size

    @property
    def root(self) -> int:
        """The root unit: embedding, head and connector."""
        return self._embeddings + self._connector

    @property
    def _embeddings(self) -> int:
        return self.embedding * (1 if self.sizes.tied_embeddings else 2)

    @property
    def _connector(self) -> int:
        return self.spec.vision.connector_parameters if self.spec.vision else 0

    @property
    def towers(self) -> int:
        """All vision towers."""
        return self.spec.seeing_parameters - self._connector

    @property
    def layer(self) -> float:
        """The unit of one decoder layer, adapters included."""
        return self._plain_layer + (self.learning_of_a_layer if self.lora else 0)

    @property
    def whole(self) -> float:
        """All parameters, adapters included."""
        return self.spec.parameters + (self.learning_of_a_layer * self.sizes.num_layers if self.lora else 0)

    @property
    def queries(self) -> int:
        return self.sizes.num_heads * self.sizes.head_dim

    @property
    def keys(self) -> int:
        return self.sizes.num_kv_heads * self.sizes.head_dim

    @cached_property
    def is_gated(self) -> bool:
        """Whether a layer multiplies a gate with its MLP: three matrices and RMS norms, else two and layer norms."""
        attention = 2 * self.sizes.hidden_size * (self.queries + self.keys)
        return self._plain_layer - attention > 2.5 * self.sizes.hidden_size * self.sizes.intermediate_size

    @property
    def adapted(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of a layer that lora adapts; names of other families count as all."""
        wanted = set(self.lora.target_modules or ()) if self.lora else set()
        matrices = _MATRICES | (_GATE if self.is_gated else {})
        names = wanted if wanted and wanted <= matrices.keys() else matrices.keys()
        sizes = {"H": self.sizes.hidden_size, "Q": self.queries, "K": self.keys, "I": self.sizes.intermediate_size}
        return [(sizes[matrices[name][0]], sizes[matrices[name][1]]) for name in names]

    # --- what learns ---

    @property
    def learning(self) -> float:
        """Numbers that have gradients and optimizer state."""
        towers = self.towers if self.towers_learn else 0
        return self.learning_root + self.learning_of_a_layer * self.learning_layers + towers

    @property
    def towers_learn(self) -> bool:
        return self.adaptation.vision == "full"

    @property
    def matrices_learn(self) -> bool:
        """Whether whole matrices learn, in the layers in which anything does."""
        return self.adaptation.kind in ("full", "last_layer")

    @property
    def learning_root(self) -> int:
        connects = self.towers_learn or self.adaptation.kind in ("full", "connector")
        return (self._embeddings if self.matrices_learn else 0) + (self._connector if connects else 0)

    @property
    def learning_head(self) -> int:
        return self.embedding if self.matrices_learn else 0

    @property
    def learning_layers(self) -> int:
        """Layers in which something learns."""
        return {"last_layer": 1, "connector": 0}.get(self.adaptation.kind, self.sizes.num_layers)

    @cached_property
    def learning_of_a_layer(self) -> float:
        """Numbers that learn in such a layer."""
        if self.lora is not None:
            return sum(self.lora.rank * (ins + outs) for ins, outs in self.adapted)
        if self.adaptation.kind == "connector":
            return 0
        if self.adaptation.kind == "bias_only":  # a bias on every matrix at most
            return self.queries + 2 * self.keys + 2 * self.sizes.hidden_size + 2 * self.sizes.intermediate_size
        return self._plain_layer

    @property
    def _plain_layer(self) -> float:
        return max(self.spec.parameters - self._embeddings - self.spec.seeing_parameters, 0) / self.sizes.num_layers
