"""What a forward pass keeps for its backward pass, tensor by tensor. No torch, ray, mlflow.

Counted as autograd saves them: a norm its fp32 input, its result before the weights (where those learn) and what it
feeds to matrices (where those learn, or have adapters); attention queries, keys, values and result; a gated MLP gate,
up, the activated gate and, where the next matrix learns, their product. Korthikanti et al. 2022
(https://arxiv.org/abs/2205.05198) count the same for GPT: 34 bytes a token and hidden unit.
"""

from dataclasses import dataclass

from orchestrator.planning.sizes.units import Units

FP32 = 4
# Queries and keys are normalised before they meet.
_NORMALISED_HEADS = ("Qwen3ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM")


@dataclass(frozen=True)
class Activations:
    """Of a micro-batch on one rank; every property is bytes.

    `checkpointing` recomputes all but a layer's input (True) or all but its input and the results of its matrices and
    its kernel (selective). `compiled` layers keep inputs and outputs of norms in the dtype that computes, and no more.
    `masked`: packed rows are kept apart by a mask of all pairs of positions, not by their lengths.
    """

    units: Units
    rows: int
    length: int
    compute_bytes: int
    checkpointing: bool | str
    compiled: bool
    masked: bool

    @property
    def tokens(self) -> int:
        """How many, not bytes."""
        return self.rows * self.length

    @property
    def hidden(self) -> float:
        """One hidden state of every token."""
        return self.tokens * self.compute_bytes * self.units.sizes.hidden_size

    @property
    def kept(self) -> float:
        """By all layers, from their forward to their backward pass, by vision towers, and one mask of booleans."""
        layers, learning = self.units.sizes.num_layers, self.units.learning_layers
        beside = (self.tokens * self.length if self.masked else 0) + self.seen
        if self.checkpointing == "selective":
            return layers * self.tokens * self.compute_bytes * self._results + beside
        if self.checkpointing:
            return layers * self.hidden + beside
        frozen = self.tokens * self._values(inputs=False)
        return learning * self.layer + (layers - learning) * frozen + self.hidden + beside

    @property
    def seen(self) -> float:
        """By vision towers, of as many images as the tokens could be of: every layer where they learn, else one.

        17 values a patch and hidden unit (Korthikanti et al. 2022), or one where they are recomputed.
        """
        vision = self.units.spec.vision
        if vision is None:
            return 0
        images = -(-self.tokens // vision.tokens_per_image)
        total = 0
        for tower in vision.towers:
            patches = images * (vision.image_size // tower.patch_size) ** 2
            recomputed = self.checkpointing is True or not self.units.towers_learn
            values = (tower.num_layers if self.units.towers_learn else 0) * (1 if recomputed else 17)
            total += patches * tower.hidden_size * (values + 17 * recomputed)
        return self.compute_bytes * total

    @property
    def layer(self) -> float:
        """By one layer in which something learns, when nothing is recomputed."""
        return self.tokens * self._values(inputs=self.units.matrices_learn or self.units.lora is not None)

    @property
    def kept_by_head(self) -> float:
        """By the last norm."""
        learns = self.units.adaptation.kind == "full"
        return self.tokens * self._norm(self.units.sizes.hidden_size, learns, self.units.matrices_learn)

    @property
    def workspace(self) -> float:
        """Gradients inside a layer at its fullest: two of the MLP's width, one hidden state, one matrix."""
        sizes = self.units.sizes
        matrix = sizes.hidden_size * sizes.intermediate_size if self.units.matrices_learn else 0
        return self.compute_bytes * (self.tokens * (2 * sizes.intermediate_size + sizes.hidden_size) + matrix)

    def _values(self, *, inputs: bool) -> float:
        """Bytes of a token in one layer; `inputs`: those of matrices are kept, which learn or have adapters."""
        units, sizes, c = self.units, self.units.sizes, self.compute_bytes
        learns = inputs and units.matrices_learn
        norms = 2 * self._norm(sizes.hidden_size, learns, inputs)
        if units.spec.llm_cls in _NORMALISED_HEADS:
            norms += self._norm(units.queries + units.keys, learns, False)
        # Keys and values are repeated for every query head; of each row of scores the logarithm of its sum is kept.
        attention = 4 * c * units.queries + FP32 * sizes.num_heads + (c * self.length if self.masked else 0)
        mlp = c * sizes.intermediate_size * ((3 if units.is_gated else 1) + inputs)
        return norms + attention + mlp + self._adapters

    def _norm(self, size: int, learns: bool, feeds: bool) -> float:
        c, is_rms = self.compute_bytes, self.units.is_gated
        if self.compiled:
            return c * size * (1 + feeds)
        return size * ((FP32 if is_rms else c) + c * (learns and is_rms) + c * feeds)

    @property
    def _adapters(self) -> float:
        """Bytes of a token that lora keeps: the result of each A and, with dropout, its mask and its own input."""
        lora = self.units.lora
        if lora is None:
            return 0
        dropped = self.compute_bytes + 1 if lora.dropout else 0
        return sum(lora.rank * self.compute_bytes + ins * dropped for ins, _ in self.units.adapted)

    @property
    def _results(self) -> float:
        """Values of a token that selective checkpointing keeps in a layer: input, results of matrices and kernel."""
        units, sizes = self.units, self.units.sizes
        adapters = sum(units.lora.rank + outs for _, outs in units.adapted) if units.lora else 0
        gates = 2 if units.is_gated else 1
        matrices = 2 * sizes.hidden_size + units.queries + 2 * units.keys + gates * sizes.intermediate_size
        return sizes.hidden_size + matrices + units.queries + adapters
