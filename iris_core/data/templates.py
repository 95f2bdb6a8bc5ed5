"""A model's chat template with an experiment's settings, the same for pairs and for benchmarks."""

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
    """A tokenizer's chat template with the settings of an experiment; a rendering does not depend on the day.

    Args:
        tokenizer: with a chat template.
        variables: of the template, by name.
        date: what the template is told when it asks for the date.
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
            asks: whether it ends with the generation prompt.
            unfinished: whether the last message goes on.
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
    """For a model of lm-evaluation-harness: its chat prompts are those of `template`."""

    template: Template

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """The prompt of `chat_history`; as in the harness, without system turns where the template refuses them."""
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except TemplateError:
            log.warning("the chat template refuses a system turn: benchmarks are asked without")
            others = [each for each in chat_history if each["role"] != "system"]
            return self._rendered(others, add_generation_prompt)

    def _rendered(self, messages: list[Message], asks: bool) -> str:
        return self.template.render(messages, asks=asks, unfinished=not asks)
