"""A finetuned folder as a policy: the model, its prompts, and the statistics of the data that it learned from."""

from dataclasses import replace
from pathlib import Path

import torch

from backbones.random_init import RandomInitBackbone
from backbones.reference import InvalidReferenceError, is_reference, resolve_reference
from backbones.registry import backbone_class, build, get_spec
from backbones.spec import BackboneSpec
from backbones.tokenizer import make_codec
from orchestrator.data.actions import CHUNK, ActionStatistics, statistics_from_openvla
from orchestrator.errors import InputError
from orchestrator.layout import EXPORT_MANIFEST
from orchestrator.results import read_json
from orchestrator.rollouts.policies import BackbonePolicy
from orchestrator.training.export import ACTION_STATISTICS


def open_policy(folder: Path, execute: int | None = None) -> BackbonePolicy:
    """The policy of a folder that a finetune exported, in fp32, on a GPU where there is one.

    It takes `execute` actions of each chunk that it answers with, or all. Raises InputError where it answers with
    fewer, where the folder is no such export, did not learn actions, or is prompted otherwise than trained.
    """
    for name, missing in ((EXPORT_MANIFEST, "a finetune exported"), (ACTION_STATISTICS, "learned actions")):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: it is no model that {missing}; give the folder of one")
    statistics, chunk = learned_from(folder)
    if execute is not None and execute > chunk:
        raise InputError(f"{folder} answers with {chunk} actions at a time, and cannot take {execute}; ask for fewer")
    manifest = read_json(folder / EXPORT_MANIFEST)
    spec = _spec_of(folder, manifest["backbone_id"], manifest["prompt_format"])
    backbone = build(spec, max_length=spec.context_length or 2048)
    found = make_codec(spec, backbone.tokenizer, spec.context_length).prompt_example
    if found != manifest["prompt_example"]:
        raise InputError(
            f"{folder} was trained with the prompt {manifest['prompt_example']!r} and would be asked with {found!r}; "
            "restore its tokenizer and its chat template"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.to(device).eval()
    return BackbonePolicy(backbone, spec, statistics, device, chunk, execute)


def learned_from(folder: Path) -> tuple[ActionStatistics, int]:
    """What a folder says of the data that its model learned from, and of how many actions an answer has.

    Raises InputError where it is of several data sets.
    """
    document = read_json(folder / ACTION_STATISTICS)
    if len(document) != 1:
        raise InputError(f"{folder / ACTION_STATISTICS} has {', '.join(document)}; leave the one that is acted by")
    [facts] = document.values()
    return statistics_from_openvla(facts), facts.get(CHUNK, 1)


def _spec_of(folder: Path, backbone_id: str, prompt_format: str) -> BackboneSpec:
    """The backbone that was trained, with the weights of the folder."""
    try:
        if is_reference(backbone_id):
            return replace(resolve_reference(f"hf:{folder}"), prompt_builder=prompt_format)
        spec = get_spec(backbone_id)
    except InvalidReferenceError as error:
        raise InputError(str(error).removeprefix("hf:")) from error
    except ValueError as error:
        raise InputError(f"{folder} is a {backbone_id}: {error} Name what registers it with --plugin") from error
    # A backbone of random weights is one of another class once it has some.
    cls = next(one for one in backbone_class(spec).__mro__ if not issubclass(one, RandomInitBackbone))
    return replace(spec, hf_hub_path=str(folder), revision=None, backbone_cls=f"{cls.__module__}:{cls.__qualname__}")
