"""Tokenises renderings of a chat template, so that text of messages never becomes a special token.

A message may hold the string of a special token (`<|im_end|>`). Before rendering, a private-use character replaces it.
Then only the template's own special tokens are left, and keep their ids. The replaced strings are tokenised as plain
text in their place.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from iris_core.data.conversations import Unusable

HIDDEN = 0xF0000  # first code point of the private-use plane that replaces special tokens in messages
STAND_IN = 0x100000  # first code point of the plane that replaces the template's own special tokens
PRIVATE = re.compile("[\U000f0000-\U0010ffff]")
ANCHOR = "\ue000"  # a character that no tokenizer merges with another
RETRIED = 3  # tokens after the end of the prompt where the answer may start


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text, and the span of characters of each; no spans if the tokenizer does not give them."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Renderings:
    """Tokenises renderings of a chat template.

    Args:
        tokenizer: of the template.
        ends: ids that end generation; they count as special even if the tokenizer does not mark them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int] = ()):
        self.tokenizer = tokenizer
        self.special = _special_strings(tokenizer, frozenset(ends))
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
        self.control = set(self.special.values()) - unknown  # any text may contain unknown tokens

    def hide(self, value: Any) -> Any:
        """`value` (a message, a list of tools) with the strings of special tokens replaced in all its texts.

        Raises:
            Unusable: the tokenizer is slow, or the text has private-use characters itself.
        """
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, list):
            return [self.hide(each) for each in value]
        if isinstance(value, dict):
            return {name: self.hide(each) for name, each in value.items()}
        return value

    def _hide(self, text: str) -> str:
        found = self._strings.search(text)
        if found is None:
            return text
        if not self.tokenizer.is_fast or PRIVATE.search(text):
            raise Unusable("special token in text", f"the text contains the special token {found.group()!r}")
        return self._strings.sub(lambda match: chr(HIDDEN + self._names.index(match.group())), text)

    def split(self, prompt: str, whole: str) -> tuple[list[int], list[int]]:
        """Tokens of `prompt`, and of the rest of `whole`, which begins with `prompt`.

        The prompt is tokenised alone, as it is in generation.

        Raises:
            Unusable: the tokenizer merges the end of the prompt with the start of the answer.
        """
        literal = PRIVATE.search(whole) is not None
        if literal:
            prompt, whole = self._spelled(prompt), self._spelled(whole)
        first, both = self._encode(prompt, literal), self._encode(whole, literal)
        if both.ids[: len(first.ids)] == first.ids:
            return first.ids, both.ids[len(first.ids) :]
        for rest in self._continuations(len(prompt), whole, both, literal):
            if self._text([*first.ids, *rest]) == self._text(both.ids):
                return first.ids, rest
        raise Unusable(
            "template",
            f"the tokenizer merges the end of the prompt {prompt[-10:]!r} with the start of the answer: use a fast "
            "tokenizer, or end the template's generation prompt with a special token or a line break",
        )

    def controls(self, text: str) -> int:
        """The number of special tokens in a part of a rendering that has no text of messages."""
        return sum(token in self.control for token in self._encode(text, literal=False).ids)

    def _continuations(self, border: int, whole: str, both: Encoded, literal: bool) -> Iterator[list[int]]:
        """Candidates for the tokens of `whole[border:]`: a short middle tokenised alone, then the tokens of `both`.

        There are several, because some tokenizers leave spaces out of the span of a token, at either end.
        """
        token = _first_from(border, both)
        for index in range(token, min(token + RETRIED, len(both.ids)) + 1):
            before = max([border, *(end for _, end in both.spans[:index])])
            after = both.spans[index][0] if index < len(both.ids) else len(whole)
            for stop in sorted({before, after}):
                yield [*self._middle(whole[border:stop], literal), *both.ids[index:]]

    def _middle(self, text: str, literal: bool) -> list[int]:
        """The tokens of `text` inside a longer text, where it does not start a word."""
        encoded = self._encode(ANCHOR + text, literal)
        return encoded.ids[_first_from(len(ANCHOR), encoded) :]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _spelled(self, rendered: str) -> str:
        """`rendered` with the strings of messages restored, and stand-ins for the template's special tokens."""
        safe = self._strings.sub(lambda match: chr(STAND_IN + self._names.index(match.group())), rendered)
        for number, name in enumerate(self._names):
            safe = safe.replace(chr(HIDDEN + number), name)
        return safe

    def _encode(self, text: str, literal: bool) -> Encoded:
        if not literal:
            return _encode(self.tokenizer, text)
        encoded = _encode(self._literal, text, split_special_tokens=True)
        if forged := self.control & set(encoded.ids):
            name = self.tokenizer.convert_ids_to_tokens(forged.pop())
            raise Unusable("special token in text", f"the text contains the special token {name!r}")
        ids = [self._meant.get(token, token) for token in encoded.ids]
        return Encoded(ids, encoded.spans)

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self.special, key=len, reverse=True)

    @cached_property
    def _strings(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._names)) or r"(?!)")

    @cached_property
    def _literal(self) -> PreTrainedTokenizerBase:
        """A tokenizer that knows the stand-ins, and for which the strings of special tokens are plain text."""
        literal = copy.deepcopy(self.tokenizer)
        known = self.tokenizer.added_tokens_decoder
        for number, name in enumerate(self._names):
            flags = known.get(self.special[name])
            stand_in = AddedToken(
                chr(STAND_IN + number),
                special=False,
                normalized=False,
                lstrip=bool(flags and flags.lstrip),
                rstrip=bool(flags and flags.rstrip),
            )
            literal.add_tokens([stand_in])
        return literal

    @cached_property
    def _meant(self) -> dict[int, int]:
        """The id of the special token for the id of each stand-in."""
        return {
            self._literal.convert_tokens_to_ids(chr(STAND_IN + number)): self.special[name]
            for number, name in enumerate(self._names)
        }


def _special_strings(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> dict[str, int]:
    """Strings and ids of the special tokens, and of other added tokens that end generation.

    A padding token that is an ordinary token, such as "!", is left out.
    """
    added = tokenizer.added_tokens_decoder
    found = {each.content: token for token, each in added.items() if each.special or token in ends}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    found |= {name: token for name, token in named.items() if token is not None}
    pad, name = tokenizer.pad_token_id, str(tokenizer.pad_token)
    ending = (tokenizer.eos_token_id, tokenizer.bos_token_id, *ends)
    if pad not in (None, *ending) and _encode(tokenizer, name, split_special_tokens=True).ids == [pad]:
        found.pop(name, None)
    return {name: token for name, token in found.items() if name}


def _encode(tokenizer: Any, text: str, split_special_tokens: bool = False) -> Encoded:
    found = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=split_special_tokens,
        return_offsets_mapping=tokenizer.is_fast,
        return_attention_mask=False,
    )
    return Encoded(list(found["input_ids"]), found.get("offset_mapping", []))


def _first_from(border: int, encoded: Encoded) -> int:
    """The first token at or after `border` that shares no character with an earlier token."""
    reached = border
    for index, (start, end) in enumerate(encoded.spans):
        if start >= reached:
            return index
        reached = max(reached, end)
    return len(encoded.ids)
