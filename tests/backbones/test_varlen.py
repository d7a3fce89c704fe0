"""The varlen kernel around a plain one in the place of torch's, which needs a GPU: documents, heads, windows, scale.

What is proved is all that stands between a model of transformers and torch's kernel. `by_document` has that kernel's
signature and computes one document after another in fp64, as its documentation says.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import FAMILY_REPRESENTATIVES, make_small_folder, small_spec
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from backbones import AttentionUnavailableError, build, get_spec, resolve_attention
from backbones.attention import AttentionChoice
from backbones.inputs import IGNORED, Example, Inputs, make_inputs
from backbones.varlen import document_bounds, register_varlen

FAMILIES = [family for family in FAMILY_REPRESENTATIVES if family not in ("gemma2", "gpt2")]
LENGTHS = ((40, 9), (30,), (3, 1, 21))  # of the documents of each row; windows are of 16 tokens
VARLEN = AttentionChoice("varlen", "varlen", "the test's own kernel stands in its place")


def by_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`varlen_attn` of torch 2.13."""
    assert query.ndim == 3 and enable_gqa == (query.shape[1] != key.shape[1])
    bounds = cu_seq_q.tolist()
    assert cu_seq_q.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(query) and max_q == max_k
    groups = query.shape[1] // key.shape[1]
    found = []
    for start, end in pairwise(bounds):
        assert 0 < end - start <= max_q
        q, k, v = (x[start:end].double().transpose(0, 1) for x in (query, key, value))
        scores = q @ k.repeat_interleave(groups, 0).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        ahead = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]  # of key before query
        left, right = (end if side < 0 else side for side in window_size)
        scores = scores.masked_fill((ahead < -left) | (ahead > right), -torch.inf)
        found.append((scores.softmax(-1) @ v.repeat_interleave(groups, 0)).transpose(0, 1))
    return torch.cat(found).to(query.dtype)


def without_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """`varlen_attn` of torch 2.11: keys and values have as many heads as queries."""
    assert query.shape[1] == key.shape[1]
    return by_document(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


KERNELS = {"varlen-2.13": by_document, "varlen-2.11": without_groups}


def examples(seed: int = 0) -> list[list[Example]]:
    draw = np.random.default_rng(seed)
    return [[Example(draw.integers(3, 200, size), draw.random(size) < 0.7) for size in row] for row in LENGTHS]


@pytest.fixture(scope="module")
def folders(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("varlen"), {}

    def folder(family: str) -> Path:
        backbone_id, tokenizer = FAMILY_REPRESENTATIVES[family]
        if family not in made:
            made[family] = make_small_folder(get_spec(backbone_id), root / family, kit / "tokenizers" / tokenizer)
        return made[family]

    return folder


def stock(folder: Path, kernel: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=kernel).eval()


def nats(logits_BTV: torch.Tensor, labels_BT: np.ndarray) -> torch.Tensor:
    labels = torch.from_numpy(labels_BT).flatten()
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_and_gradients_are_those_of_stock_transformers_for_each_document_alone(
    folders: Callable[[str], Path], family: str, kernel: str
) -> None:
    alone = stock(folders(family), "eager")
    packed = stock(folders(family), register_varlen(kernel, KERNELS[kernel]))
    inputs = VARLEN.arrange(make_inputs(examples(), pad_token_id=1))

    logits = packed(**inputs.on(torch.device("cpu")).arguments, use_cache=False).logits
    nats(logits, inputs.labels_BT).backward()

    for line, row in enumerate(examples()):
        first = 0
        for document in row:
            one = make_inputs([[document]], pad_token_id=1)
            expected = alone(**one.on(torch.device("cpu")).arguments, use_cache=False).logits
            nats(expected, one.labels_BT).backward()
            found = logits[line, first : first + len(document[0])]
            torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
            first += len(document[0])
    pairs = zip(packed.named_parameters(), alone.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        assert ours.grad is not None and theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=2e-5 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("family", ["llama2", "mistral", "gemma3"])
def test_a_forward_pass_that_was_given_no_bounds_makes_them_of_the_position_ids(
    folders: Callable[[str], Path], family: str
) -> None:
    model = stock(folders(family), register_varlen("varlen-2.13", by_document))
    inputs = make_inputs(examples(), pad_token_id=1)
    with torch.no_grad():
        given = model(**VARLEN.arrange(inputs).on(torch.device("cpu")).arguments, use_cache=False).logits
        found = model(**inputs.on(torch.device("cpu")).arguments, use_cache=False).logits
    torch.testing.assert_close(found, given, rtol=0, atol=0)

    ids = torch.from_numpy(inputs.input_ids_BT)
    with torch.no_grad():
        whole_rows = model(input_ids=ids, use_cache=False).logits
        expected = stock(folders(family), "eager")(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(whole_rows, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


def test_the_bounds_are_made_once_for_a_forward_pass(folders: Callable[[str], Path]) -> None:
    seen: list[int] = []

    def watched(*rows: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(rows[3].data_ptr())
        return by_document(*rows, **options, enable_gqa=rows[0].shape[1] != rows[1].shape[1])  # type: ignore[arg-type]

    model = stock(folders("qwen3"), register_varlen("varlen-watched", watched))
    inputs = VARLEN.arrange(make_inputs(examples(), pad_token_id=1))
    with torch.no_grad():
        model(**inputs.on(torch.device("cpu")).arguments, use_cache=False)

    assert len(seen) == model.config.num_hidden_layers and len(set(seen)) == 1


@given(rows=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_documents_begin_with_their_row_and_padding_belongs_to_the_last(rows: list[list[int]]) -> None:
    made = make_inputs(
        [[Example(np.arange(size), np.ones(size, bool)) for size in row] for row in rows], pad_token_id=0
    )
    width = made.input_ids_BT.shape[1]
    expected = [line * width + sum(row[:place]) for line, row in enumerate(rows) for place in range(len(row))]

    bounds = document_bounds(made.position_ids_BT)

    assert bounds.shape == (1, 1, 1, len(expected) + 1) and bounds.dtype == np.int32
    assert bounds.flatten().tolist() == [*expected, len(rows) * width]


def test_the_loss_of_packed_documents_is_the_sum_of_their_losses_alone(folders: Callable[[str], Path]) -> None:
    from backbones import register
    from orchestrator.training.loss import token_nats

    spec = register(small_spec(get_spec(FAMILY_REPRESENTATIVES["qwen3"][0]), "small-varlen", folders("qwen3")))
    backbone = build(spec.backbone_id, max_length=64, attention="sdpa", compute_dtype=torch.float32)
    cpu = torch.device("cpu")
    with torch.no_grad():
        batches: list[Inputs] = [make_inputs([[document]], 0) for row in examples() for document in row]
        alone = sum(float(token_nats(backbone, batch, cpu).double().sum()) for batch in batches)
        backbone.llm.set_attn_implementation(register_varlen("varlen-2.13", by_document))
        backbone.attention = VARLEN
        packed = float(token_nats(backbone, make_inputs(examples(), 0), cpu).double().sum())

    assert packed == pytest.approx(alone, rel=1e-6)


def test_compiled_layers_serve_any_number_of_documents_without_being_compiled_anew(
    folders: Callable[[str], Path],
) -> None:
    from torch._dynamo.utils import counters

    from orchestrator.training.model.compilation import compile_layers

    model = stock(folders("qwen3"), register_varlen("varlen-broken-off", torch._dynamo.disable(by_document)))
    compile_layers(model, model.model.layers, backend="eager")
    graphs = []
    for cuts in ((16, 16), (8, 8, 16), (4, 20, 4, 4), (32,)):
        counters.clear()
        inputs = VARLEN.arrange(make_inputs([[Example(np.arange(3, 3 + cut), np.ones(cut, bool)) for cut in cuts]], 1))
        arguments = inputs.on(torch.device("cpu")).arguments
        with torch.no_grad():
            found = model(**arguments, use_cache=False).logits
            expected = stock(folders("qwen3"), "eager")(**make_plain(arguments), use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        graphs.append(counters["stats"]["unique_graphs"])

    assert graphs[0] > 0 and not any(graphs[1:]), graphs


def make_plain(arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same without the bounds: other kernels look at the position ids."""
    return {name: value for name, value in arguments.items() if name != "attention_mask"}


def test_what_the_kernel_cannot_do_is_refused_by_name(folders: Callable[[str], Path]) -> None:
    model = stock(folders("llama2"), register_varlen("varlen-2.13", by_document))
    ids = torch.randint(3, 200, (2, 8), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"without a padding mask or a cache; use_attention\('sdpa'\)"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    model.config.attention_dropout = 0.1
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="neither dropout nor softcap"):
        model.train()(input_ids=ids, use_cache=False)


def test_a_model_whose_scores_varlen_cannot_compute_is_told_why_and_what_to_choose() -> None:
    with pytest.raises(AttentionUnavailableError, match=r"varlen cannot run here: the model caps .*; choose flex"):
        resolve_attention("varlen", llm_cls=Gemma2ForCausalLM)
    with pytest.raises(AttentionUnavailableError, match=r"varlen cannot run here: the model drops .*; choose sdpa"):
        resolve_attention("varlen", llm_cls=GPT2LMHeadModel)
    undropped = GPT2Config(attn_pdrop=0.0)
    if not torch.cuda.is_available():
        with pytest.raises(AttentionUnavailableError, match="there is no CUDA device; place the work on GPUs"):
            resolve_attention("varlen", llm_cls=GPT2LMHeadModel, config=undropped)
    with pytest.raises(AttentionUnavailableError, match=r"half precision only, not in torch.float32; set precision"):
        resolve_attention("varlen", llm_cls=LlamaForCausalLM, dtype=torch.float32)
    assert "not varlen: it computes in half precision only" in resolve_attention("auto", dtype=torch.float32).reason
