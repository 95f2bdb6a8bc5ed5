"""Converts conversations to the tokens that the model sees, with the model's chat template.

The conversation is rendered and tokenised twice: up to the generation prompt, and whole. The answer's tokens are those
of the whole that follow the prompt, up to and with the end of turn. A conversation where the two cannot be separated is
refused. Only `prepare` renders pairs; later stages read their token ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from iris_core.common.errors import ConfigError, ModelError
from iris_core.config import DataPart
from iris_core.data.conversations import Conversation, Message, Unusable, single_turn, text_of
from iris_core.data.templates import Template, Tools
from iris_core.data.tokens import Renderings

QUESTION, ANSWER, MARK = "\u2042question\u2042", "\u2042answer\u2042", "\u2042{}\u2042"
THOUGHT = re.compile("</?think>")  # templates may leave out of earlier turns what precedes the last of these
SYSTEM = ("system", "developer")


class Chat:
    """Converts conversations to tokens, with one tokenizer and the settings of one experiment.

    Args:
        tokenizer: with a chat template.
        data: system prompt and variables of the template.
        generation_ends: tokens that end generation according to the model's generation_config.

    Attributes:
        stop_token_ids: tokens that end a response: the end of turn of the chat template, then others.

    Raises:
        ConfigError: the template does not use a variable.
        ModelError: the template refuses the system prompt, hides the question, or does not separate it from the answer;
            or the tokenizer has no eos_token, or no token for the end of turn that the template writes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        data: DataPart,
        generation_ends: Sequence[int] = (),
    ):
        _check_variables(tokenizer, data.chat_template_kwargs)
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "model.path: the tokenizer has no eos_token, which ends an answer: set it to the end of turn of the "
                "chat template (in tokenizer_config.json)"
            )
        self.tokenizer, self.system_prompt = tokenizer, data.system_prompt
        self.template = Template(tokenizer, data.chat_template_kwargs, data.template_date)
        self._shapes: set[tuple[Any, ...]] = set()
        self._removed_ends = self._with_special = 0
        self.closing = self._closing()
        self.tokens = self._renderings(generation_ends)
        end = self._try()[1][-1]
        self.stop_token_ids = list(dict.fromkeys([end, *generation_ends, tokenizer.eos_token_id]))
        self._warnings = self._check_ends(generation_ends) + self._check_bos()

    @property
    def warnings(self) -> list[str]:
        """Warnings about the template and the data's ends of turn, one line each."""
        name = self.tokenizer.convert_ids_to_tokens(self.stop_token_ids[0])
        removed = (
            f"data: assistant turns that end with a token such as {name!r}, which the chat template writes itself: "
            f"{self._removed_ends}; it was removed from them"
        )
        text = (
            f"data: pairs with the text of a special token such as {name!r}: {self._with_special}; it stays text: if "
            "it is a chat template's, take it out, as the model's own template is put around every message"
        )
        return [
            *self._warnings,
            *([removed] if self._removed_ends else []),
            *([text] if self._with_special else []),
        ]

    def encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Token ids of the prompt, up to the start of the answer, and of the answer with its end of turn.

        Raises:
            Unusable: the template refuses, hides or changes a message; or a special token in a text cannot stay text.
        """
        prompt_ids, response_ids = self._encode(conversation)
        if inner := set(response_ids[:-1]) & set(self.stop_token_ids):
            name = self.tokenizer.convert_ids_to_tokens(inner.pop())
            raise Unusable("stop token in answer", f"the answer goes on after {name!r}, which ends generation")
        if response_ids[-1] not in self.stop_token_ids:  # some templates end tool calls with another token
            self.stop_token_ids.append(response_ids[-1])
        return prompt_ids, response_ids

    def clean(self, conversation: Conversation) -> Conversation:
        """`conversation` without ends of turn at the end of the assistant's texts; the template writes them itself."""
        names = {name for name, token in self.tokens.special.items() if token in self.stop_token_ids}
        ends = re.compile(rf"(\s*({'|'.join(map(re.escape, names))}))+\s*\Z")

        def cleaned(message: Message) -> Message:
            content = message.get("content")
            if message["role"] != "assistant" or not isinstance(content, str):
                return message
            shorter = ends.sub("", content)
            self._removed_ends += shorter != content
            return {**message, "content": shorter}

        messages = [cleaned(message) for message in conversation.messages]
        return replace(conversation, messages=messages, answer=cleaned(conversation.answer))

    def _encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        given = self._with_system(conversation.messages)
        messages, answer = self.tokens.hide(given), self.tokens.hide(conversation.answer)
        tools = self.tokens.hide(conversation.tools)
        self._with_special += messages != given or answer != conversation.answer
        prompt = self._render(messages, tools, asks=True)
        self._check_shown(messages, tools, prompt)
        whole = self._render([*messages, answer], tools, asks=False)
        if not whole.startswith(prompt):
            raise Unusable("template", _divergence(prompt, whole))
        start, end = self._place(answer, prompt, whole)
        if not self.tokens.controls(self.closing):
            prompt_ids, response_ids = self.tokens.split(prompt, whole[:end])
            return prompt_ids, [*response_ids, self.tokenizer.eos_token_id]
        prompt_ids, rest = self.tokens.split(prompt, whole)
        ends = [index for index, token in enumerate(rest) if token in self.tokens.control]
        before = self.tokens.controls(whole[len(prompt) : start])
        if len(ends) <= before:
            raise Unusable("template", "the chat template does not end the answer's turn")
        return prompt_ids, rest[: ends[-1 if answer.get("tool_calls") else before] + 1]

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if not self.system_prompt or any(each["role"] in SYSTEM for each in messages):
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def _render(self, messages: list[Message], tools: Tools, *, asks: bool) -> str:
        try:
            return self.template.render(messages, tools, asks=asks)
        except Exception as error:  # a template is a program and may raise anything
            roles = ", ".join(each["role"] for each in messages)
            raise Unusable("template", f"the chat template fails on the turns {roles}: {error}") from error

    def _check_shown(self, messages: list[Message], tools: Tools, prompt: str) -> None:
        """Checks that the prompt shows every message and every tool.

        A short text may be in the prompt by chance. So each new order of roles is also rendered with marks as texts.
        """
        for message in messages:
            text = text_of(message)
            if message["role"] == "assistant":  # templates may drop its reasoning
                text = THOUGHT.split(text)[-1]
            shown = [text.strip(), *_names(message.get("tool_calls"))]
            if hidden := [each for each in shown if each not in prompt]:
                raise Unusable("template", _hides(message["role"], hidden[0]))
        if hidden := [name for name in _names(tools) if name not in prompt]:
            raise Unusable("template", f"the chat template does not show the tool {hidden[0]!r}")
        shape = tuple(each["role"] for each in messages if text_of(each))
        if shape not in self._shapes:
            self._check_marks(messages, tools)
            self._shapes.add(shape)

    def _check_marks(self, messages: list[Message], tools: Tools) -> None:
        marked = [
            {**message, "content": MARK.format(index)} if text_of(message) else message
            for index, message in enumerate(messages)
        ]
        rendered = self._render(marked, tools, asks=True)
        for message in marked:
            if text_of(message) not in rendered:
                raise Unusable("template", _hides(message["role"], text_of(message)))

    def _place(self, answer: Message, prompt: str, whole: str) -> tuple[int, int]:
        """The start and the end of the answer's text, after its reasoning, in `whole`."""
        texts = [text.strip() for text in THOUGHT.split(text_of(answer))]
        texts = [text for text in texts if text] or [""]
        body = whole[len(prompt) :]
        for text in (*texts, *_names(answer.get("tool_calls"))):
            if text not in body:
                raise Unusable("template", _hides("assistant", text))
        last = texts[-1]
        before_end = body.removesuffix(self.closing).rstrip()
        at = len(before_end) - len(last) if before_end.endswith(last) else body.find(last)
        return len(prompt) + at, len(prompt) + at + len(last)

    def _closing(self) -> str:
        """The text that the template writes after an answer.

        Raises:
            ModelError: it refuses a question with its answer, or does not show the answer.
        """
        trial = single_turn(QUESTION, ANSWER)
        messages = [*self._with_system(trial.messages), trial.answer]
        try:
            _, found, after = self._render(messages, None, asks=False).rpartition(ANSWER)
        except Unusable as problem:
            field = "data.system_prompt" if self.system_prompt else "model.path"
            remedy = "leave it out, or fix" if self.system_prompt else "fix"
            raise ModelError(f"{field}: {problem}: {remedy} the chat template") from None
        if not found:
            raise ModelError(f"model.path: {_hides('assistant', ANSWER)}")
        return after

    def _renderings(self, generation_ends: Sequence[int]) -> Renderings:
        """The renderings. They know the end of turn even if it is an added token that is not marked as special."""
        tokens = Renderings(self.tokenizer, generation_ends)
        if tokens.controls(self.closing):
            return tokens
        added = [
            token
            for token, each in self.tokenizer.added_tokens_decoder.items()
            if each.content.strip() and each.content in self.closing
        ]
        return Renderings(self.tokenizer, [*generation_ends, *added])

    def _try(self) -> tuple[list[int], list[int]]:
        """The tokens of a sample question and its answer.

        Raises:
            ModelError: the template does not give them.
        """
        trial = single_turn(QUESTION, ANSWER)
        messages = self._with_system(trial.messages)
        try:
            encoded = self._encode(trial)
            prompt, plain = (self._render(messages, None, asks=asks) for asks in (True, False))
            whole = self._render([*messages, trial.answer], None, asks=False)
        except Unusable as problem:
            raise ModelError(f"model.path: {problem}") from None
        header = whole[len(prompt) :].partition(ANSWER)[0].strip()
        if prompt == plain and header:
            raise ModelError(
                f"model.path: the chat template has no generation prompt, so that the model would have to write "
                f"{header!r} itself: have the template write it where add_generation_prompt is set"
            )
        return encoded

    def _check_ends(self, generation_ends: Sequence[int]) -> list[str]:
        """A warning if the end of turn does not end generation according to the model's generation_config.

        Raises:
            ModelError: the template ends a turn with something that is plain text to the tokenizer; or it writes no end
                of turn, and the tokenizer's eos_token does not end generation.
        """
        end, closing = self.stop_token_ids[0], self.closing.strip()
        if closing and not self.tokens.controls(closing):
            raise ModelError(
                f"model.path: the chat template ends a turn with {closing!r}, which is text to the tokenizer, so that "
                "no token ends an answer: have the template write the eos_token, or add that as a special token and "
                "train the model with it"
            )
        if end in generation_ends or not generation_ends:
            return []
        name, *others = self.tokenizer.convert_ids_to_tokens([end, *generation_ends])
        named = f"generation_config.json names {', '.join(map(repr, others))} as eos_token_id"
        if not self.tokens.controls(self.closing):
            raise ModelError(
                f"model.path: the chat template writes no end of turn, the tokenizer's eos_token is {name!r}, and "
                f"{named}: have the template write the end of turn that the model was trained on, or correct eos_token "
                "or eos_token_id"
            )
        return [
            f"model.path: the chat template ends a turn with {name!r}, {named}: both end a response here; add {name!r} "
            "there, so that others who serve the model stop at it"
        ]

    def _check_bos(self) -> list[str]:
        """A warning if the tokenizer begins plain text with a token that the template leaves out."""
        bos, name = self.tokenizer.bos_token_id, self.tokenizer.bos_token
        plain = list(self.tokenizer("x")["input_ids"])
        if bos is None or bos not in plain or bos in self._try()[0]:
            return []
        return [
            f"model.path: the tokenizer puts {name!r} before a text, the chat template does not write it: if "
            "supervised fine-tuning had it, write {{ bos_token }} at the beginning of the template"
        ]


def _check_variables(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    template = tokenizer.chat_template
    texts = list(template.values()) if isinstance(template, dict) else [template]
    for name in kwargs:
        if not any(re.search(rf"\b{re.escape(name)}\b", str(text)) for text in texts):
            raise ConfigError(
                f"data.chat_template_kwargs: the chat template does not use {name!r}: correct the name, or leave it out"
            )


def _names(tools: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The names of the functions in a list of tools or of calls."""
    functions = [each.get("function", each) for each in tools or ()]
    return [str(each["name"]) for each in functions if "name" in each]


def _hides(role: str, text: str) -> str:
    return (
        f"the chat template does not show the text of the {role} turn unchanged ({text[:40]!r} is missing): does it "
        "take content as a list of parts, or know no such role? Fix the chat template"
    )


def _divergence(prompt: str, whole: str) -> str:
    """The reason that the answer cannot be separated: where `whole` differs from `prompt`, its expected beginning."""
    pairs = enumerate(zip(prompt, whole, strict=False))
    same = next((index for index, (one, other) in pairs if one != other), min(len(prompt), len(whole)))
    return (
        f"the chat template ends a prompt with {prompt[same:][-40:]!r}, where an annotated answer has "
        f"{whole[same:][:40]!r}: the model would be trained on another beginning than it is given; set "
        "data.chat_template_kwargs (such as {enable_thinking: false}), or fix the chat template"
    )
