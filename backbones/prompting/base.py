"""What every prompt format offers: turns in, exact text out."""

import secrets
from abc import ABC, abstractmethod
from typing import ClassVar

IMAGES = secrets.token_hex(8)  # stands for a turn's images; drawn per process, so that no data can contain it


class PromptBuilder(ABC):
    """Builds the text of a conversation turn by turn; turns alternate "human", "gpt".

    `add_turn` returns the piece that the turn adds, so a caller can mask human pieces. `answer_lead` is the length of
    what the last "gpt" piece puts before the answer itself. Contract: TRI-ML/prismatic-vlms,
    models/backbones/llm/prompting.
    """

    uses_system_prompt: ClassVar[bool] = False  # False: a system prompt would be ignored without a word
    bos: str = "<s>"
    eos: str = "</s>"
    answer_lead: int = 0

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        self.model_family = model_family
        self.system_prompt = system_prompt
        self.prompt = ""
        self.turn_count = 0

    @abstractmethod
    def wrap_human(self, message: str) -> str:
        """The piece of a human turn."""

    def wrap_gpt(self, message: str) -> str:
        """The piece of an answer; an empty answer becomes one space."""
        return f"{message or ' '}{self.eos}"

    def wrap_first_human(self, message: str) -> str:
        """The piece of the first human turn, which carries the system prompt where the format has one."""
        return self.wrap_human(message)

    def clean(self, message: str) -> str:
        """The message as it enters the prompt."""
        return message.replace("<image>", "").strip()

    def add_turn(self, role: str, message: str) -> str:
        """Appends a turn and returns its piece. Raises AssertionError when it is not `role`'s turn."""
        assert (role == "human") if (self.turn_count % 2 == 0) else (role == "gpt")
        piece = self._wrap(role, self.clean(message))
        self.prompt += piece
        self.turn_count += 1
        return piece

    def add_turn_with_images(self, message: str) -> tuple[str, str]:
        """Appends a human turn and returns its piece in two: its images stand between them, in front of the message."""
        before, _, behind = self.add_turn("human", IMAGES + self.clean(message)).partition(IMAGES)
        return before, behind

    def get_potential_prompt(self, message: str) -> str:
        """The prompt if `message` were the next human turn; changes nothing, cleans nothing."""
        return (self.prompt + self._wrap("human", message)).removeprefix(self.bos).rstrip()

    def get_prompt(self) -> str:
        """The text so far, without the BOS that the tokenizer adds by itself."""
        return self.prompt.removeprefix(self.bos).rstrip()

    def _wrap(self, role: str, message: str) -> str:
        if role == "gpt":
            return self.wrap_gpt(message)
        return self.wrap_first_human(message) if self.turn_count == 0 else self.wrap_human(message)
