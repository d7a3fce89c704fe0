"""Conversations, texts, actions and images to token ids with label masks: where a prompt becomes tokens.

Over 300 lines: whoever asks what a prompt's ids are reads one file.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from backbones.actions import ActionTokens, action_tokens
from backbones.prompting.base import PromptBuilder
from backbones.prompting.control_tokens import ControlTokens
from backbones.prompting.formats import PromptVariant
from backbones.prompting.image_tokens import NO_IMAGES, CodecError, ImageTokens, images_of_questions
from backbones.prompting.message_tokens import NO, YES, EncodedText, MessageTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = {"user": "human", "assistant": "gpt"}
_NO_TEXT = "\ue000"  # of no vocabulary: never one token with what stands before it
_PROBE = [("system", "S"), ("user", "Q 1?"), ("assistant", "A 1."), ("user", "Q 2?"), ("assistant", "A 2.")]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example and, for each, whether it is learned and whether it is scored.

    Learned: what answers say and the token that ends each of them; a text and its EOS. Scored: learned, and made at
    least in part of an answer's or the text's own characters: neither control tokens nor what the format puts around
    an answer. Never truncated.
    """

    input_ids: list[int]
    targets: bytes  # a 1 or a 0 for each id
    scored: bytes

    @property
    def is_target(self) -> list[bool]:
        """Whether each id is learned."""
        return [flag == 1 for flag in self.targets]

    @property
    def is_scored(self) -> list[bool]:
        """Whether each id is scored."""
        return [flag == 1 for flag in self.scored]


@dataclass(frozen=True)
class _Piece:
    """One turn's text as the tokenizer gets it; `start` and `end` (characters) enclose the message itself."""

    text: str
    start: int
    end: int


class Codec:
    """A tokenizer with a prompt format.

    Each turn is tokenized by itself, so the tokens of a training prompt's prefix are the tokens of the inference
    prompt. Spaces that end a human piece open the answer instead, where every BPE vocabulary has them; where the
    tokenizer puts a space in front of a text by itself (SentencePiece), one of them is what it puts. The legacy
    variant is upstream's rule: such tokenizers get human pieces without trailing white space, others get all.
    A BOS is put in front when the tokenizer does so by default and the prompt has none. Control tokens that a message
    or a text quotes are encoded as ordinary text (`ControlTokens`); an added token that is not marked special, like
    Qwen3's `<think>`, stays one token wherever it stands.

    `eos_token_id` ends an answer (a chat template's end of turn, else EOS), `text_eos_token_id` ends a text. The ids of
    actions are the last of the `extra_tokens` where there are some, see `ActionTokens`. Images take `image_tokens`
    each, which are neither learned nor scored; None: there can be none.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_builder: type[PromptBuilder],
        *,
        variant: PromptVariant = "standard",
        max_length: int = 2048,
        extra_tokens: int = 0,
        image_tokens: ImageTokens | None = None,
    ):
        if not tokenizer.is_fast or tokenizer.eos_token_id is None:
            raise CodecError("a codec needs a tokenizer with a tokenizer.json and an EOS token")
        self.tokenizer = tokenizer
        self.prompt_builder = prompt_builder
        self.variant = variant
        self.max_length = max_length
        self.extra_tokens = extra_tokens
        self.image_tokens = image_tokens
        self._backend: Any = tokenizer.backend_tokenizer
        self.bos_token_id: int | None = tokenizer.bos_token_id
        self.pad_token_id: int | None = tokenizer.pad_token_id
        self.text_eos_token_id: int = tokenizer.eos_token_id
        self._control = ControlTokens(self._backend, _control_ids(tokenizer))
        self._special_ids = set(self._control.ids.values())
        self._message_tokens = MessageTokens(self._backend, self._special_ids)
        self._adds_bos = adds_bos(tokenizer)
        self._adds_prefix_space = self._probe_prefix_space()
        self.eos_token_id = self._probe_answer_end()

    def encode_conversation(self, turns: Sequence[tuple[str, str]], images: Sequence[int] = ()) -> Encoded:
        """All turns, the answers learned. `turns` are (role, content): [system,] user, assistant, user, ...

        `images` says how many images each turn has. Raises CodecError for another order of roles, and for images in
        turns that are not the user's. A system text is put in front of the first user message, a blank line between,
        where the format would ignore it.
        """
        counts = images_of_questions(turns, images)
        input_ids: list[int] = []
        targets, scored = bytearray(), bytearray()
        for human_ids, answer in self._encode_turns(turns, counts):
            if not input_ids:
                human_ids = self._with_bos(human_ids)
            input_ids += human_ids
            input_ids += answer.input_ids
            targets += NO * len(human_ids) + answer.targets
            scored += NO * len(human_ids) + answer.scored
        return self._with_images(Encoded(input_ids, bytes(targets), bytes(scored)), sum(counts))

    def encode_action(self, question: str, ids: Sequence[int], images: int = 0, ends: bool = True) -> Encoded:
        """A question with so many images and an action's ids as its answer: these are learned and scored, its end is
        learned, unless it comes too early (not `ends`): more would follow that nobody knows.

        The ids never were text: most tokenizers would make others of it. What stands between the prompt and the first
        of them, such as the space of its own that Llama's has there, is learned no more than the prompt.
        """
        guarded = self._control.occur_in(question)
        builder = self.prompt_builder("prismatic")
        asked = self._control.hide(question) if guarded else question
        in_front, prompt, prompt_ids, moved = self._encode_question(builder, asked, images, guarded)
        answer = self._answer_piece(builder, _NO_TEXT, moved, guarded)
        lead_ids, closing_ids = self._ids_around(prompt, prompt_ids, answer, guarded)
        before = [*self._with_bos([*in_front, *prompt_ids]), *lead_ids]
        learned = len(closing_ids) - closing_ids[::-1].index(self.eos_token_id) if ends else 0
        encoded = Encoded(
            [*before, *ids, *closing_ids],
            NO * len(before) + YES * (len(ids) + learned) + NO * (len(closing_ids) - learned),
            NO * len(before) + YES * len(ids) + NO * len(closing_ids),
        )
        return self._with_images(encoded, images)

    @cached_property
    def actions(self) -> ActionTokens:
        """The ids of actions. Raises ActionTokensError where this tokenizer has none to spare."""
        return action_tokens(self.tokenizer, self.extra_tokens)

    def encode_prompt(self, turns: Sequence[tuple[str, str]], images: Sequence[int] = ()) -> list[int]:
        """The inference prompt: ends where the answer to the last user turn starts."""
        if not turns or turns[-1][0] != "user":
            raise CodecError("an inference prompt ends with a user turn")
        return self.encode_conversation(turns, images).input_ids

    def encode_text(self, text: str) -> Encoded:
        """A context token (BOS, else EOS), the text, EOS. All but the first are learned, the text's tokens scored."""
        context = self.text_eos_token_id if self.bos_token_id is None else self.bos_token_id
        ids = self._tokenize_text(text)
        return Encoded(
            [context, *ids, self.text_eos_token_id],
            NO + YES * (len(ids) + 1),
            NO + bytes(token_id not in self._special_ids for token_id in ids) + NO,
        )

    def round_trips(self, text: str) -> bool:
        """Whether decoding the text's tokens gives back the text, byte for byte."""
        return bool(self._backend.decode(self._tokenize_text(text), skip_special_tokens=False) == text)

    @cached_property
    def prompt_example(self) -> str:
        """A question and its answer as the model sees them."""
        builder = self.prompt_builder("prismatic")
        return builder.add_turn("human", "What is 2 + 2?") + builder.add_turn("gpt", "4")

    @cached_property
    def prompt_with_image(self) -> str | None:
        """What a model that sees is asked about one image, with `{question}` for the question; None where it reads
        text alone.

        The tokenizer makes of it the ids that were learned from. Placeholders that no token has are left out: they
        stand behind the first id.
        """
        if self.image_tokens is None:
            return None
        ids = self.encode_prompt([("user", "{question}")], [1])
        is_named = self.image_tokens.place != "bos"
        named = [token_id for token_id in ids if is_named or token_id != self.image_tokens.placeholder]
        return str(self._backend.decode(named, skip_special_tokens=False))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over tokenizer, special ids and prompt format: changes when any id or prompt byte would."""
        parts = {
            "tokenizer": hashlib.sha256(self._fresh_backend().to_str().encode()).hexdigest(),
            "special": [
                self.bos_token_id,
                self.eos_token_id,
                self.text_eos_token_id,
                self.pad_token_id,
                self._adds_bos,
            ],
            "variant": self.variant,
            "prompt": [self.prompt_example, getattr(self.prompt_builder, "template", self.prompt_builder.__name__)],
            "ids": [self.encode_conversation(_PROBE).input_ids, self.encode_conversation(_PROBE[1:3]).input_ids],
        }
        if self.image_tokens is not None:
            seen = self.encode_conversation(_PROBE, [2 * (role == "user") for role, _ in _PROBE])
            parts["images"] = [self.image_tokens.placeholder, seen.input_ids]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _encode_turns(self, turns: Sequence[tuple[str, str]], images: Sequence[int]) -> list[tuple[list[int], Encoded]]:
        """For each user turn its ids and the encoded answer, empty where there is none yet."""
        system, messages = _split_system(turns)
        guarded = any(self._control.occur_in(content) for _, content in turns)
        if guarded:
            system = None if system is None else self._control.hide(system)
            messages = [(role, self._control.hide(content)) for role, content in messages]
        if system is not None and not self.prompt_builder.uses_system_prompt:
            messages[0] = ("human", f"{system}\n\n{messages[0][1]}")
            system = None
        builder = self.prompt_builder("prismatic", system)
        encoded = []
        answers = [content for _, content in messages[1::2]]
        for (_, question), answer, count in zip_longest(messages[::2], answers, images):
            in_front, prompt, prompt_ids, moved = self._encode_question(builder, question, count, guarded)
            piece = None if answer is None else self._answer_piece(builder, answer, moved, guarded)
            encoded.append(([*in_front, *prompt_ids], self._encode_answer(prompt, prompt_ids, piece, guarded)))
        return encoded

    def _encode_question(
        self, builder: PromptBuilder, question: str, images: int, guarded: bool
    ) -> tuple[list[int], str, list[int], str]:
        """Adds a human turn. Gives the ids up to its images and with them, the text behind them, its ids, and the
        spaces that the answer opens with instead; without images in this place the text is the whole piece."""
        if images and self.image_tokens is None:
            raise CodecError(NO_IMAGES)
        if not images or self.image_tokens is None or self.image_tokens.place != "turn":
            in_front, piece = [], builder.add_turn("human", question)
        else:
            tokens, (lead, trail) = self.image_tokens, self.image_tokens.around
            header, behind = builder.add_turn_with_images(question)
            rewrite = self._control.rewrite if guarded else str
            texts = [header + lead, *[trail + lead] * (images - 1)]
            in_front = [i for text in texts for i in (*self._tokenize(rewrite(text), guarded).ids, *tokens.ids)]
            piece = trail + behind
        prompt, moved = self._human_text(piece, guarded)
        return in_front, prompt, self._tokenize(prompt, guarded).ids, moved

    def _with_images(self, encoded: Encoded, count: int) -> Encoded:
        """The same with its images in front or behind the first token, where that is their place."""
        tokens = self.image_tokens
        if not count or tokens is None or tokens.place == "turn":
            return encoded
        ids, at = tokens.ids * count, 1 if tokens.place == "bos" else 0
        nothing = NO * len(ids)
        return Encoded(
            [*encoded.input_ids[:at], *ids, *encoded.input_ids[at:]],
            encoded.targets[:at] + nothing + encoded.targets[at:],
            encoded.scored[:at] + nothing + encoded.scored[at:],
        )

    def _human_text(self, piece: str, guarded: bool) -> tuple[str, str]:
        """A human piece without the spaces that end it, and the spaces that the answer opens with instead."""
        text = self._control.rewrite(piece) if guarded else piece
        if self.variant == "legacy":
            return (text.rstrip() if self._adds_prefix_space else text), ""
        kept = text.rstrip(" ")
        return kept, text[len(kept) :]

    def _answer_piece(self, builder: PromptBuilder, content: str, moved: str, guarded: bool) -> _Piece:
        piece = builder.add_turn("gpt", content)
        rewrite = self._control.rewrite if guarded else str
        start = builder.answer_lead
        end = start + len(builder.clean(content))
        lead, message, closing = moved + rewrite(piece[:start]), rewrite(piece[start:end]), rewrite(piece[end:])
        return _Piece(lead + message + closing, len(lead), len(lead) + len(message))

    def _encode_answer(self, prompt: str, prompt_ids: list[int], piece: _Piece | None, guarded: bool) -> Encoded:
        if piece is None:
            return Encoded([], b"", b"")
        tokens = self._continue(prompt, prompt_ids, piece.text, guarded)
        ids = tokens.ids
        count = len(ids) - ids[::-1].index(self.eos_token_id)  # behind the end nothing is learned
        start, end = piece.start + tokens.shift, piece.end + tokens.shift
        scored = self._message_tokens.mask(tokens, start, end, alters_text=guarded)
        rest = NO * (len(ids) - count)
        return Encoded(ids, YES * count + rest, scored[:count] + rest)

    def _ids_around(
        self, prompt: str, prompt_ids: list[int], piece: _Piece, guarded: bool
    ) -> tuple[list[int], list[int]]:
        """What stands before and behind the message of a piece whose message is `_NO_TEXT`."""
        if not self._adds_prefix_space:
            around = piece.text[: piece.start], piece.text[piece.end :]
            return self._tokenize(around[0], guarded).ids, self._tokenize(around[1], guarded).ids
        # Whether a space of its own stands before the message shows only where a message is.
        ids = self._continue(prompt, prompt_ids, piece.text, guarded).ids
        once, twice = (self._tokenize(_NO_TEXT * count, guarded).ids for count in (1, 2))
        size = len(twice) - len(once)
        start = next(place for place in range(len(ids)) if ids[place : place + size] == once[-size:])
        return ids[:start], ids[start + size :]

    def _continue(self, prompt: str, prompt_ids: list[int], text: str, guarded: bool) -> EncodedText:
        """`text` as tokens behind `prompt`."""
        shift = 0
        if self.variant == "standard" and self._adds_prefix_space:
            if not text.startswith(" "):
                joint, count = self._tokenize(prompt + text, guarded), len(prompt_ids)
                if joint.ids[:count] == prompt_ids:
                    return EncodedText(joint, prompt + text, count, len(prompt))
            else:
                text, shift = text[1:], -1
        return EncodedText(self._tokenize(text, guarded), text, 0, shift)

    def _tokenize(self, text: str, guarded: bool) -> Any:
        backend = self._control.renamed if guarded else self._fresh_backend()
        return backend.encode(text, add_special_tokens=False)

    def _tokenize_text(self, text: str) -> list[int]:
        return list(self._tokenize(text, guarded=self._control.occur_in(text)).ids)

    def _fresh_backend(self) -> Any:
        # A caller of the tokenizer may have left truncation, padding or another reading of control tokens behind.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        return self._backend

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self._adds_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            return [self.bos_token_id, *ids]
        return ids

    def _probe_prefix_space(self) -> bool:
        """Whether a space is put in front of a text: then the two halves of "x x" have equal tokens."""
        ids = self._tokenize("x x", guarded=False).ids
        half = len(ids) // 2
        return len(ids) % 2 == 0 and ids[:half] == ids[half:]

    def _probe_answer_end(self) -> int:
        """The id that ends an answer: the last control token of what the format puts after it."""
        builder = self.prompt_builder("prismatic")
        builder.add_turn("human", "Q")
        closing = builder.add_turn("gpt", "A")[builder.answer_lead + 1 :]
        added = self._special_ids | set(self.tokenizer.added_tokens_decoder)
        ends = [token_id for token_id in self._tokenize(closing, guarded=False).ids if token_id in added]
        if not ends:
            raise CodecError(
                f"{self.prompt_builder.__name__} ends an answer with {closing!r}, in which this tokenizer has no "
                "control token, so a trained model would never stop. Choose a prompt format for this tokenizer, or add "
                "its EOS to the chat template."
            )
        return int(ends[-1])


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts BOS in front of a text by default, and only by default."""
    bos = tokenizer.bos_token_id
    with_special = tokenizer("Test 123", add_special_tokens=True)["input_ids"]
    without = tokenizer("Test 123", add_special_tokens=False)["input_ids"]
    return bos is not None and with_special[0] == bos and without[0] != bos


def _control_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Text to id of every token marked special, and of BOS, EOS, PAD and the like."""
    added = tokenizer.added_tokens_decoder
    ids = {token.content: token_id for token_id, token in added.items() if token.special}
    return ids | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def _split_system(turns: Sequence[tuple[str, str]]) -> tuple[str | None, list[tuple[str, str]]]:
    """The system text, if any, and the other turns with a builder's role names, which must alternate."""
    system = turns[0][1] if turns and turns[0][0] == "system" else None
    rest = turns[0 if system is None else 1 :]
    expected = ["user", "assistant"] * (len(rest) // 2 + 1)
    if not rest or [role for role, _ in rest] != expected[: len(rest)]:
        found = ", ".join(role for role, _ in turns) or "nothing"
        raise CodecError(f"a conversation is [system,] user, assistant, user, ...; found {found}")
    return system, [(_ROLES[role], content) for role, content in rest]
