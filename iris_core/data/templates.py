"""A model's chat template with the settings of an experiment, the same for pairs and for benchmarks."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from iris_core.data.conversations import Message

Tools = list[dict[str, Any]] | None
log = logging.getLogger(__name__)


class Template:
    """A tokenizer's chat template with the settings of an experiment. A rendering does not depend on the current date.

    Args:
        tokenizer: with a chat template.
        variables: values of the template's variables, by name.
        date: the date that the template gets as today's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any], date: datetime.date):
        self.tokenizer = tokenizer
        midnight = datetime.datetime.combine(date, datetime.time())
        self.variables = {**variables, "strftime_now": midnight.strftime}

    def render(self, messages: list[Message], tools: Tools = None, *, asks: bool, unfinished: bool = False) -> str:
        """The text of `messages`.

        Args:
            messages: in the format of chat templates.
            tools: descriptions of the tools that may be called.
            asks: whether the text ends with the generation prompt.
            unfinished: whether the last message is continued, without an end of turn.
        """
        rendered = self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=asks,
            continue_final_message=unfinished,
            **self.variables,
        )
        return str(rendered)


class ChatPrompts:
    """A mix-in for models of lm-evaluation-harness: their chat prompts are rendered by `template`."""

    template: Template

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """The prompt of `chat_history`. As in the harness, system turns are left out if the template refuses them."""
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except TemplateError:
            log.warning("the chat template refuses a system turn: benchmarks are asked without")
            others = [each for each in chat_history if each["role"] != "system"]
            return self._rendered(others, add_generation_prompt)

    def _rendered(self, messages: list[Message], asks: bool) -> str:
        return self.template.render(messages, asks=asks, unfinished=not asks)
