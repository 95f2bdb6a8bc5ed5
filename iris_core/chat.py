"""Chat templates: the one way from a conversation to tokens. Only `prepare` renders pairs; later stages read ids."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from iris_core.conversations import Conversation, Message

_MARK = "\u2042response\u2042"


class Chat:
    """A tokenizer's chat template with the settings of an experiment.

    Args:
        tokenizer: with a chat template.
        system_prompt: the system turn of conversations that have none of their own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None):
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt

    def encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Token ids of the prompt, up to where the answer starts, and of the answer with its end of turn."""
        messages = self._with_system(conversation.messages)
        prompt: Any = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, tools=conversation.tools
        )
        answer = self.tokenizer(conversation.answer["content"], add_special_tokens=False)
        return list(prompt), [*answer["input_ids"], self.end]

    @cached_property
    def end(self) -> int:
        """The token that the chat template puts after an assistant's message, else the end-of-sequence token."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        after = self.tokenizer(text.partition(_MARK)[2], add_special_tokens=False)["input_ids"]
        if after and after[0] in self.tokenizer.all_special_ids:
            return after[0]
        return self.tokenizer.eos_token_id

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self.system_prompt is None or any(each["role"] == "system" for each in messages):
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]
