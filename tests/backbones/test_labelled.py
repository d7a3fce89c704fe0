"""Nats of labelled positions, in chunks, are the cross entropy of the whole logits: for every family, and for models
that scale or cap what their head says. All in fp64, gradients too.
"""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import FAMILY_REPRESENTATIVES, make_small_llm
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from backbones.inputs import IGNORED, Inputs
from backbones.labelled import add_methods, logits_of
from backbones.registry import get_spec
from orchestrator.planning.sizes.chunks import MOST_BYTES, count_chunks, positions_per_chunk

ROWS = 101
SIZES = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "cohere": ("CohereForCausalLM", SIZES | {"intermediate_size": 48, "logit_scale": 0.3}),
    "granite": ("GraniteForCausalLM", SIZES | {"intermediate_size": 48, "logits_scaling": 7.0}),
    "minicpm3": ("MiniCPM3ForCausalLM", SIZES | {"intermediate_size": 48, "dim_model_base": 8}),
    "opt": ("OPTForCausalLM", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "bloom": ("BloomForCausalLM", SIZES),
}
TOLERANCE = 1e-12


def make_llm(name: str) -> Any:
    if name in OTHERS:
        class_name, values = OTHERS[name]
        llm_cls = getattr(transformers, class_name)
        torch.manual_seed(0)
        llm = llm_cls(llm_cls.config_class(**values, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    else:
        llm = make_small_llm(get_spec(FAMILY_REPRESENTATIVES[name][0]), ROWS)
    add_methods(llm)
    return llm.double().eval()


def some_inputs(labelled_share: float = 0.6, seed: int = 0) -> Inputs:
    draw = np.random.default_rng(seed)
    ids = draw.integers(3, ROWS, (2, 20))
    labels = np.where(draw.random((2, 20)) < labelled_share, draw.integers(3, ROWS, (2, 20)), IGNORED)
    return Inputs(ids, np.tile(np.arange(20), (2, 1)), labels)


def by_whole_logits(llm: Any, inputs: Inputs) -> torch.Tensor:
    placed = inputs.on(torch.device("cpu"))
    logits = llm(**placed.arguments, use_cache=False).logits.flatten(0, 1)
    every = functional.cross_entropy(logits, torch.from_numpy(inputs.labels_BT).flatten(), reduction="none")
    return every[placed.positions_N]


def by_chunks(llm: Any, inputs: Inputs, chunks: int) -> torch.Tensor:
    placed = inputs.on(torch.device("cpu"))
    nats: torch.Tensor = llm.labelled_nats(placed.positions_N, placed.targets_N, chunks, **placed.arguments)
    return nats


def gradients(llm: Any, nats: torch.Tensor) -> list[torch.Tensor]:
    learning = [parameter for parameter in llm.parameters() if parameter.requires_grad]
    weights = torch.linspace(0.5, 1.5, len(nats), dtype=nats.dtype)  # no two positions weigh the same
    return list(torch.autograd.grad((nats * weights).sum(), learning, materialize_grads=True))


def assert_equal(llm: Any, inputs: Inputs, chunks: int) -> None:
    whole, chunked = by_whole_logits(llm, inputs), by_chunks(llm, inputs, chunks)
    torch.testing.assert_close(chunked, whole, rtol=TOLERANCE, atol=TOLERANCE)
    for ours, theirs in zip(gradients(llm, chunked), gradients(llm, whole), strict=True):
        assert float((ours - theirs).abs().max()) <= TOLERANCE * max(float(theirs.abs().max()), 1.0)


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("name", [*FAMILY_REPRESENTATIVES, *OTHERS])
def test_nats_and_gradients_of_labelled_positions_are_those_of_the_whole_logits(name: str, chunks: int) -> None:
    assert_equal(make_llm(name), some_inputs(), chunks)


@pytest.mark.parametrize("name", [*FAMILY_REPRESENTATIVES, *OTHERS])
def test_logits_of_labelled_positions_are_those_of_the_whole_logits(name: str) -> None:
    llm, placed = make_llm(name), some_inputs().on(torch.device("cpu"))
    with torch.no_grad():
        whole = llm(**placed.arguments, use_cache=False).logits.flatten(0, 1)[placed.positions_N]
        some = llm.labelled_logits(placed.positions_N, **placed.arguments)
    torch.testing.assert_close(some, whole, rtol=TOLERANCE, atol=TOLERANCE)


def test_an_adapter_on_the_head_learns_as_from_the_whole_logits() -> None:
    from peft import LoraConfig

    llm = make_llm("mistral")
    llm.add_adapter(LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    llm.double()

    assert_equal(llm, some_inputs(), chunks=2)
    learning = [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
    assert [name for name in learning if "lm_head" in name]


@settings(max_examples=10, deadline=None)
@given(share=st.sampled_from([0.0, 0.02, 0.5, 1.0]), chunks=st.integers(1, 60), seed=st.integers(0, 3))
def test_any_number_of_labels_in_any_number_of_chunks(share: float, chunks: int, seed: int) -> None:
    assert_equal(make_llm("gemma2"), some_inputs(share, seed), chunks)


def test_positions_without_a_label_get_no_logits_and_several_chunks_never_live_together() -> None:
    llm, inputs = make_llm("llama2"), some_inputs()
    seen: list[int] = []
    llm.lm_head.register_forward_hook(lambda _, __, output: seen.append(output.shape[1]))

    nats = by_chunks(llm, inputs, chunks=4)
    count = len(nats)
    kept = {tuple(tensor.shape) for tensor in _saved_by(lambda: by_chunks(llm, inputs, chunks=4).sum())}
    nats.sum().backward()

    assert sum(seen[:4]) == count < inputs.labels_BT.size
    assert max(seen) == -(-count // 4)
    assert not [shape for shape in kept if shape[-1:] == (ROWS,) and len(shape) > 1 and shape[-2] != 64]
    assert sum(seen) == 3 * count  # forward twice, and once more in the backward pass


def _saved_by(compute: Any) -> list[torch.Tensor]:
    """What autograd keeps of a computation for the backward pass."""
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return saved


def test_the_model_is_as_it_was_after_its_logits_were_asked_for() -> None:
    llm, inputs = make_llm("qwen2"), some_inputs()
    before = by_whole_logits(llm, inputs)

    with pytest.raises(RuntimeError):
        logits_of(
            llm, BaseModelOutputWithPast(last_hidden_state=torch.zeros(1, 3, 7).double())
        )  # of another hidden size

    assert torch.equal(by_whole_logits(llm, inputs), before)


def test_a_model_whose_forward_pass_asks_no_decoder_is_refused_by_name() -> None:
    class Aside(transformers.LlamaForCausalLM):
        def forward(self, **_: Any) -> Any:
            return CausalLMOutputWithPast(logits=torch.zeros(1, 3, ROWS))

    llm = Aside(transformers.LlamaConfig(**SIZES, intermediate_size=48))

    with pytest.raises(RuntimeError, match="Aside asks its decoder, LlamaModel, 0 times"):
        logits_of(llm, BaseModelOutputWithPast(last_hidden_state=torch.zeros(1, 3, 32)))


@given(rows=st.integers(1, 10**9), positions=st.integers(0, 10**7))
def test_a_chunk_is_bounded_whatever_the_vocabulary(rows: int, positions: int) -> None:
    chunks = count_chunks(positions, rows)
    largest = -(-positions // chunks)

    assert largest == 0 or largest * rows * 4 <= MOST_BYTES or largest == 1
    assert chunks == 1 or -(-positions // (chunks - 1)) > positions_per_chunk(rows)  # and there is none too many
