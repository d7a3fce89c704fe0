"""What a backbone claims to be, in the order of proof: each claim with its proof, what it expects and a remedy."""

from collections.abc import Callable
from dataclasses import dataclass

from backbones.spec import BackboneSpec
from orchestrator.certificate import proofs
from orchestrator.certificate.proofs import LEARNED, ROW_MULTIPLE, STEPS, Finding
from orchestrator.certificate.subject import Subject


@dataclass(frozen=True)
class Claim:
    """What a proof claims, how it is proved, what has to pass before, and what to do where it does not hold."""

    name: str
    prove: Callable[[Subject], Finding]
    expected: str
    remedy: str
    needs: tuple[str, ...] = ()


CLAIMS = (
    Claim(
        "special tokens",
        proofs.special_tokens,
        expected="PAD differs from EOS and BOS, no BOS follows another, the token that ends an answer is learned",
        remedy="Set another pad_token in the backbone's spec, or correct the tokenizer's special tokens.",
    ),
    Claim(
        "prompt",
        proofs.prompt,
        expected="the tokens before an answer in training are the tokens of the inference prompt",
        remedy="Correct the chat template, or the prompt builder, so that a conversation begins with its prompt.",
        needs=("special tokens",),
    ),
    Claim(
        "architecture",
        proofs.architecture,
        expected="the class that config.json names, the declared layers, and each of them one FSDP unit",
        remedy="Correct llm_cls, decoder_layer_cls or a tower's layer_cls in the backbone's spec.",
        needs=("special tokens",),
    ),
    Claim(
        "weights",
        proofs.weights,
        expected="no missing, unexpected or mismatched tensor, and every tensor equal to the checkpoint's",
        remedy="Copy the weights again, or use the class and the version of transformers that they were saved with.",
        needs=("special tokens",),
    ),
    Claim(
        "rows",
        proofs.rows,
        expected=f"a multiple of {ROW_MULTIPLE} rows, and at least one for each token",
        remedy="Correct the backbone's resize_embeddings.",
        needs=("weights",),
    ),
    Claim(
        "parity",
        proofs.parity,
        expected="logits of the adapted, sharded model within {tolerance:.0e} of stock transformers', {precision}",
        remedy="Try attention: eager; if that passes, the kernel is at fault, else the backbone's own code.",
        needs=("weights",),
    ),
    Claim(
        "images",
        proofs.images,
        expected="the placeholders that the spec says, no image token among the labels, and pixels that matter",
        remedy="Correct tokens_per_image, placeholder or frame in the backbone's vision, or its collate.",
        needs=("prompt", "weights"),
    ),
    Claim(
        "packing",
        proofs.packing,
        expected="the loss of packed examples within {tolerance:.0e} of the sum of each alone, {precision}",
        remedy="Set packing: false, or another attention kernel: this one lets packed examples see each other.",
        needs=("prompt", "weights"),
    ),
    Claim(
        "overfit",
        proofs.overfit,
        expected=f"a few answers said after {STEPS} steps at most, at {LEARNED} nats per token where the head learns",
        remedy="Look at what the adaptation trains; an adaptation that cannot learn a few words will not learn a task.",
        needs=("prompt", "weights"),
    ),
)


def claims_of(spec: BackboneSpec) -> list[Claim]:
    """What a backbone has to prove: of images only one that sees."""
    return [claim for claim in CLAIMS if claim.prove is not proofs.images or spec.vision is not None]
