"""Who acts: a backbone, and what it is measured against."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from backbones.contract import TrainableBackbone
from backbones.inputs import Example
from backbones.spec import BackboneSpec
from backbones.tokenizer import make_codec
from orchestrator.cell_job import RolloutRequest
from orchestrator.data.actions import ActionStatistics, question_about
from orchestrator.data.images.files import resized
from orchestrator.environments.environment import ROLLED_OUT, episode_seed
from orchestrator.environments.fleet import Fleet
from orchestrator.rollouts.play import Policy, Request
from orchestrator.training.loss import place


def seeds_of(asked: RolloutRequest) -> list[int]:
    """Of the episodes that are asked for."""
    return [episode_seed(ROLLED_OUT, asked.seed, number) for number in range(asked.episodes)]


class BackbonePolicy:
    """Each number of an action is the likeliest of its 256 ids, given those before it: a forward pass for each.

    Reads the logits of the backbone in place, sharded or not; where it is sharded every call is collective.
    """

    def __init__(
        self,
        backbone: TrainableBackbone,
        spec: BackboneSpec,
        statistics: ActionStatistics,
        device: torch.device,
        chunk: int = 1,
        execute: int | None = None,
    ) -> None:
        """`spec` is the backbone's, `statistics` are those of the data that it learned from.

        Of the `chunk` actions that it has learned to answer with, only the first `execute` are asked for, or all: the
        others depend on them.
        """
        self.chunk, self.execute = chunk, execute or chunk
        self._backbone, self._statistics, self._device = backbone, statistics, device
        self._vision = spec.vision
        self._codec = make_codec(spec, backbone.tokenizer, spec.context_length)

    @property
    def dimensions(self) -> int:
        """D, numbers of an action."""
        return self._statistics.dimensions

    def __call__(self, requests: Sequence[Request]) -> np.ndarray:
        """The next actions (requests, execute, D), in the robot's own units."""
        tokens, backbone = self._codec.actions, self._backbone
        contexts = [self._context(request) for request in requests]
        chosen = np.empty((len(requests), 0), np.int64)
        for _ in range(self.execute * self._statistics.dimensions):
            rows = [[_asked(*context, ids)] for context, ids in zip(contexts, chosen, strict=True)]
            placed = place(backbone, backbone.collate(rows), self._device)
            with torch.no_grad():
                logits_NV = backbone.logits(placed)
            following_NV = logits_NV[chosen.shape[1] :: chosen.shape[1] + 1]  # what follows each row's last id
            best = following_NV[:, tokens.begin : tokens.end].float().argmax(dim=1).cpu().numpy()
            chosen = np.concatenate([chosen, tokens.begin + best[:, None]], axis=1)
        actions = tokens.decode(chosen).reshape(len(requests), self.execute, self._statistics.dimensions)
        return self._statistics.restore(actions)

    def _context(self, request: Request) -> tuple[np.ndarray, np.ndarray | None]:
        """What stands before an action's ids in training, (T,), and the images in it."""
        question = question_about(request.observation.instruction)
        images = None if self._vision is None else self._seen(request)[None]
        encoded = self._codec.encode_action(question, [self._codec.actions.begin], 0 if images is None else 1)
        return np.array(encoded.input_ids[: encoded.scored.index(1)], np.int32), images

    def _seen(self, request: Request) -> np.ndarray:
        """The image as training showed it, (S, S, 3) uint8."""
        assert self._vision is not None
        return resized(request.observation.image, self._vision.image_size, self._vision.resample)


def _asked(context: np.ndarray, images: np.ndarray | None, ids: np.ndarray) -> Example:
    """An example as in training, whose last id stands for the one that is asked for, and is never seen by it."""
    input_ids = np.concatenate([context, ids, ids[-1:] if len(ids) else context[-1:]]).astype(np.int32)
    return Example(input_ids, np.arange(len(input_ids)) >= len(context), images)


class RandomPolicy:
    """All that the robot can do is equally likely, whatever it sees; the same in every run."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __call__(self, requests: Sequence[Request]) -> np.ndarray:
        """Actions (requests, 1, D)."""
        draws = self._fleet.draw({lane: (request.seed, request.step) for lane, request in enumerate(requests)})
        return np.stack([*draws.values()])[:, None]


def with_other_instructions(policy: Policy, instructions: Mapping[int, str]) -> Policy:
    """A policy that is told something else than what its episodes, by seed, ask for."""

    def act(requests: Sequence[Request]) -> np.ndarray:
        told = [
            replace(one, observation=replace(one.observation, instruction=instructions[one.seed])) for one in requests
        ]
        return policy(told)

    return act
