"""The proofs: eight, and one more of what sees. Each looks at a `Subject` and returns a `Finding`, or raises: an error
is a finding too.

Over 300 lines: each proof stands beside its claim.

Collective: every rank of the process group runs the same lines, on the same tokens. Only rank 0 holds a stock model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from backbones.inputs import IGNORED, Example, make_inputs
from backbones.loading import WeightsError
from backbones.registry import build
from backbones.spec import BackboneSpec
from backbones.tokenizer import load_tokenizer, make_codec
from orchestrator.certificate.subject import CONVERSATIONS, Subject, Turns
from orchestrator.training.loss import place, summed_nats, token_nats

ROW_MULTIPLE = 64
STEPS = 300
LOOK_EVERY = 10
LEARNED = 0.05  # nats per target token


@dataclass(frozen=True)
class Finding:
    """Whether a claim holds, and the numbers or names that show it."""

    holds: bool
    found: str


class NotRunError(Exception):
    """A proof cannot be made because something before it failed."""


@dataclass(frozen=True)
class Claim:
    """What a proof claims, how it is proved, what has to pass before, and what to do where it does not hold."""

    name: str
    prove: Callable[[Subject], Finding]
    expected: str
    remedy: str
    needs: tuple[str, ...] = ()


def special_tokens(subject: Subject) -> Finding:
    """PAD is a token of its own; BOS is not doubled; EOS is learned after every answer.

    More than one BOS can be right: SmolLM2's opens every turn. Two in a row are what template and tokenizer both added.
    """
    subject.tokenizer = tokenizer = load_tokenizer(subject.spec, max_length=subject.length)
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if pad is None or pad in (bos, eos):
        return Finding(False, f"PAD is id {pad}, EOS {eos}, BOS {bos}")
    try:
        subject.codec = codec = make_codec(subject.spec, tokenizer, subject.length)
    except ValueError as error:  # no prompt can be made at all: for the next proof to say
        subject.codec_error = error
        return Finding(True, f"PAD is id {pad}, EOS {eos}, BOS {bos}; no prompt could be made to look further")
    turns = CONVERSATIONS[0]
    prompt = codec.encode_prompt(turns[:-1], subject.images_of(turns)[:-1])
    labels = make_inputs([[subject.example(turns)]], pad).labels_BT
    encoded = codec.encode_text(turns[-1][1])
    text = make_inputs([[Example(np.array(encoded.input_ids), np.array(encoded.is_target))]], pad).labels_BT
    found = f"PAD is id {pad}, EOS {eos}, BOS {bos}; {prompt.count(bos) if bos is not None else 0} BOS in a prompt"
    learned = codec.eos_token_id in labels and codec.text_eos_token_id in text
    doubled = any(pair == (bos, bos) for pair in pairwise(prompt))
    found += ", two in a row" if doubled else ""
    return Finding(learned and not doubled, f"{found}; the end of an answer is {'' if learned else 'not '}a label")


def prompt(subject: Subject) -> Finding:
    """Every turn of a training example continues the very tokens that inference would be given."""
    if subject.codec_error is not None:
        raise subject.codec_error
    compared = 0
    for turns in CONVERSATIONS:
        images = subject.images_of(turns)
        whole = subject.codec.encode_conversation(turns, images)
        for end in [index for index, (role, _) in enumerate(turns) if role == "assistant"]:
            given = subject.codec.encode_prompt(turns[:end], images[:end])
            trained = whole.input_ids[: len(given)]
            if trained != given:
                place = next(i for i, pair in enumerate(zip(trained, given)) if pair[0] != pair[1])
                texts = [subject.tokenizer.decode(ids[max(place - 4, 0) : place + 4]) for ids in (trained, given)]
                return Finding(False, f"token {place} differs: training has {texts[0]!r}, inference {texts[1]!r}")
            if not whole.is_target[len(given)]:
                return Finding(False, f"the answer does not start at token {len(given)}, where the prompt ends")
            compared += len(given)
    name = subject.spec.prompt_builder
    return Finding(True, f"{compared} tokens of {name} are equal, system text and second turns included")


def architecture(subject: Subject) -> Finding:
    """The class is the one the config names, decoder and vision layers are of theirs, and each is one FSDP unit."""
    spec = subject.spec
    structure = build(spec, max_length=subject.length, empty=True)
    config = structure.llm.config
    declared = (config.architectures or ["none"])[0]
    if declared != type(structure.llm).__name__:
        return Finding(False, f"config.json names {declared}, built is {type(structure.llm).__name__}")
    layer, count = structure.transformer_layer_cls.__name__, config.get_text_config().num_hidden_layers
    if spec.decoder_layer_cls not in (None, layer):
        return Finding(False, f"the layers are {layer}, declared is {spec.decoder_layer_cls}")
    subject.structure = structure
    try:
        backbone, layers = subject.model()
    except WeightsError:
        raise NotRunError("not run: the weights could not be loaded") from None
    units = sum(isinstance(module, FSDPModule) for module in layers)
    nested = sum(isinstance(module, FSDPModule) for one in layers for module in one.modules()) - units
    found = f"{declared} with {count} x {layer}; {units} of them FSDP units"
    holds = len(layers) == count == units and not nested
    for tower, seeing in backbone.vision_layers:
        shards = sum(isinstance(module, FSDPModule) for module in seeing)
        found += f"; a tower of {tower.num_layers} x {tower.layer_cls}, {shards} of them FSDP units"
        holds = holds and len(seeing) == tower.num_layers == shards
    return Finding(holds, found + (f", {nested} nested" if nested else ""))


def weights(subject: Subject) -> Finding:
    """Stock transformers reports nothing missing, left over or mismatched, and every tensor here equals its own."""
    if subject.structure is None:
        raise NotRunError("not run: 'architecture' did not pass")
    subject.model()
    if subject.is_large:
        subject.keep_first_layers()
    if subject.has_no_checkpoint:
        odd = subject.non_finite_tensors()
        found = "drawn from a seed, there is no checkpoint" if not odd else f"not finite: {', '.join(odd)}"
        return Finding(not odd, f"{subject.tensors()} tensors, {found}")
    info = subject.load_stock()
    wrong = [f"{kind}: {', '.join(names[:3])}" for kind, names in info.items() if names]
    if wrong:
        return Finding(False, "; ".join(wrong))
    different = subject.tensors_unlike_stock()
    if different:
        return Finding(False, f"{len(different)} tensors differ from the checkpoint: {', '.join(different[:3])}")
    return Finding(True, f"{subject.tensors()} tensors, each equal to the checkpoint's")


def rows(subject: Subject) -> Finding:
    """Input and output embedding have a row for every token, and a multiple of 64 of them."""
    backbone, _ = subject.model()
    needed = max(subject.tokenizer.get_vocab().values()) + 1
    embeddings = [backbone.llm.get_input_embeddings(), backbone.llm.get_output_embeddings()]
    counts = [int(module.weight.shape[0]) for module in embeddings]
    holds = all(count % ROW_MULTIPLE == 0 and count >= needed for count in counts)
    return Finding(holds, f"{counts[0]} input and {counts[1]} output rows; the tokenizer needs {needed}")


def parity(subject: Subject) -> Finding:
    """The adapted, wrapped and sharded model computes what stock transformers computes, of an image too."""
    subject.load_stock()
    backbone, _ = subject.model()
    vocabulary = subject.stock_vocabulary()
    ours, theirs = _arguments(subject, vocabulary)
    backbone.llm.eval()
    with torch.no_grad():
        logits = backbone(**ours, use_cache=False).logits[..., :vocabulary].float()
        difference = 0.0
        if subject.stock is not None:
            expected = subject.stock(**theirs, use_cache=False).logits[..., :vocabulary].float()
            difference = float((logits - expected).abs().max().double() / expected.abs().max().double())
    subject.stock = None
    difference = subject.mesh.from_main(difference)
    found = f"{difference:.1e} of the largest logit, over {ours['input_ids'].numel()} positions and {vocabulary} rows"
    return Finding(difference <= subject.tolerance, found)


def _arguments(subject: Subject, vocabulary: int) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """What our model is given and what the stock one is: random ids, or a conversation with its image."""
    backbone, _ = subject.model()
    if subject.spec.vision is None:
        ids = subject.random_ids(vocabulary)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return {"input_ids": ids, "position_ids": positions}, {"input_ids": ids}
    example = subject.example(CONVERSATIONS[0])
    given = backbone.as_processed(example).items()
    theirs = {name: torch.from_numpy(array).to(subject.device) for name, array in given}
    return place(backbone, backbone.collate([[example]]), subject.device).arguments, theirs


def images(subject: Subject) -> Finding:
    """An image has the tokens it should have, none of them is learned, and its pixels change what is said."""
    backbone, _ = subject.model()
    vision, tokens = subject.spec.vision, subject.codec.image_tokens
    assert vision is not None and tokens is not None
    examples = [subject.example(turns) for turns in CONVERSATIONS]
    counts = {int((example.input_ids == tokens.placeholder).sum()) for example in examples}
    batch = backbone.collate([[example] for example in examples])
    labels = batch.labels_BT[batch.labels_BT != IGNORED]
    learned = int(np.isin(labels, tokens.ids).sum())
    expected = sum(sum(subject.codec.encode_conversation(turns).is_target[1:]) for turns in CONVERSATIONS)
    changed = [example._replace(images=255 - example.images) for example in examples if example.images is not None]
    backbone.llm.eval()
    with torch.no_grad():
        seen = token_nats(backbone, batch, subject.device)
        other = token_nats(backbone, backbone.collate([[example] for example in changed]), subject.device)
    moved = float((seen - other).abs().max())
    found = (
        f"{', '.join(map(str, sorted(counts)))} placeholders an image; {learned} image tokens among {len(labels)} "
        f"labels, of the text alone there are {expected}; other pixels move a token's loss by up to {moved:.1e} nats"
    )
    holds = counts == {vision.tokens_per_image} and learned == 0 and len(labels) == expected
    return Finding(holds and moved > subject.tolerance, found)


def packing(subject: Subject) -> Finding:
    """Examples that share a row do not see each other: their loss is the loss of each alone."""
    backbone, _ = subject.model()
    if subject.spec.vision is not None and not subject.spec.vision.packs:
        return Finding(True, "a row holds one example: planning refuses packing for this backbone")
    examples = [subject.example(turns) for turns in CONVERSATIONS]
    backbone.llm.eval()
    with torch.no_grad():
        packed = float(summed_nats(backbone, backbone.collate([examples]), subject.device))
        alone = [float(summed_nats(backbone, backbone.collate([[one]]), subject.device)) for one in examples]
    relative = abs(packed - sum(alone)) / abs(sum(alone))
    found = f"{packed:.5f} nats packed, {sum(alone):.5f} apart, with {backbone.attention.kernel}"
    return Finding(relative <= subject.tolerance, f"{found} ({relative:.1e})")


def overfit(subject: Subject) -> Finding:
    """What trains can learn a few answers by heart, and says them when it is asked. Changes the weights.

    A head that is frozen bounds how low the loss can go, and may have no way to say a token that was never trained,
    which the end of an answer is for some base models. Then the words alone must be said.
    """
    backbone, _ = subject.model()
    batch = backbone.collate([[subject.example(turns)] for turns in CONVERSATIONS])
    targets = int((batch.labels_BT != IGNORED).sum())
    head_learns = bool(backbone.llm.get_output_embeddings().weight.requires_grad)
    wanted = [_last_answer(subject, turns, whole=head_learns) for turns in CONVERSATIONS]
    optimizer, steps, learned = subject.optimizer(), 0, False
    while steps < STEPS and not learned:
        backbone.llm.train()
        for _ in range(LOOK_EVERY):
            (summed_nats(backbone, batch, subject.device) / targets).backward()
            torch.nn.utils.clip_grad_norm_([p for p in backbone.llm.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        steps += LOOK_EVERY
        backbone.llm.eval()
        with torch.no_grad():
            loss = float(token_nats(backbone, batch, subject.device).sum()) / targets
        may_be_learned = loss <= LEARNED or not head_learns
        if may_be_learned or steps >= STEPS:
            said = [subject.generate(prompt, len(answer)) for prompt, answer in wanted]
            learned = may_be_learned and said == [answer for _, answer in wanted]
    texts = [subject.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in said]
    found = f"{loss:.3f} nats per token after {steps} steps{'' if head_learns else ', with a frozen head'}"
    return Finding(learned, f"{found}; it says {', '.join(map(repr, texts))}")


def _last_answer(subject: Subject, turns: Turns, whole: bool) -> tuple[Example, list[int]]:
    """A conversation up to its last answer, and the answer's tokens: its words, or the `whole` with its end."""
    images = subject.images_of(turns)
    encoded, example = subject.codec.encode_conversation(turns, images), subject.example(turns)
    given = len(subject.codec.encode_prompt(turns[:-1], images[:-1]))
    flags = encoded.is_target if whole else encoded.is_scored
    last = max(index for index, flag in enumerate(flags) if flag)
    prompt = Example(example.input_ids[:given], example.is_learned[:given], example.images)
    return prompt, encoded.input_ids[given : last + 1]


CLAIMS = (
    Claim(
        "special tokens",
        special_tokens,
        expected="PAD differs from EOS and BOS, no BOS follows another, the token that ends an answer is learned",
        remedy="Set another pad_token in the backbone's spec, or correct the tokenizer's special tokens.",
    ),
    Claim(
        "prompt",
        prompt,
        expected="the tokens before an answer in training are the tokens of the inference prompt",
        remedy="Correct the chat template, or the prompt builder, so that a conversation begins with its prompt.",
        needs=("special tokens",),
    ),
    Claim(
        "architecture",
        architecture,
        expected="the class that config.json names, the declared layers, and each of them one FSDP unit",
        remedy="Correct llm_cls, decoder_layer_cls or a tower's layer_cls in the backbone's spec.",
        needs=("special tokens",),
    ),
    Claim(
        "weights",
        weights,
        expected="no missing, unexpected or mismatched tensor, and every tensor equal to the checkpoint's",
        remedy="Copy the weights again, or use the class and the version of transformers that they were saved with.",
        needs=("special tokens",),
    ),
    Claim(
        "rows",
        rows,
        expected=f"a multiple of {ROW_MULTIPLE} rows, and at least one for each token",
        remedy="Correct the backbone's resize_embeddings.",
        needs=("weights",),
    ),
    Claim(
        "parity",
        parity,
        expected="logits of the adapted, sharded model within {tolerance:.0e} of stock transformers', {precision}",
        remedy="Try attention: eager; if that passes, the kernel is at fault, else the backbone's own code.",
        needs=("weights",),
    ),
    Claim(
        "images",
        images,
        expected="the placeholders that the spec says, no image token among the labels, and pixels that matter",
        remedy="Correct tokens_per_image, placeholder or frame in the backbone's vision, or its collate.",
        needs=("prompt", "weights"),
    ),
    Claim(
        "packing",
        packing,
        expected="the loss of packed examples within {tolerance:.0e} of the sum of each alone, {precision}",
        remedy="Set packing: false, or another attention kernel: this one lets packed examples see each other.",
        needs=("prompt", "weights"),
    ),
    Claim(
        "overfit",
        overfit,
        expected=f"a few answers said after {STEPS} steps at most, at {LEARNED} nats per token where the head learns",
        remedy="Look at what the adaptation trains; an adaptation that cannot learn a few words will not learn a task.",
        needs=("prompt", "weights"),
    ),
)


def claims_of(spec: BackboneSpec) -> list[Claim]:
    """What a backbone has to prove: of images only one that sees."""
    return [claim for claim in CLAIMS if claim.prove is not images or spec.vision is not None]
