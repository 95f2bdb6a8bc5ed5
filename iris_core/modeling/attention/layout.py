"""The layout of a packed row, and what each attention implementation derives from it, once for all layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from iris_core.data.packing import Segments

BLOCK = 128  # queries or keys in a block of FlexAttention


@dataclass(frozen=True)
class Layout:
    """The segments of a row.

    Attributes:
        segments: tokens of each group's prompt and responses; together they are the row.
        device: device of the row.
    """

    segments: Segments
    device: torch.device
    _masks: dict[int | None, BlockMask] = field(default_factory=dict, compare=False, repr=False)

    def window(self, window: int | None) -> int | None:
        """A layer's sliding window, or None where no response of the row reaches beyond it."""
        longest = max(prompt + max(responses) for prompt, *responses in self.segments)
        return window if window and window < longest else None

    def block_mask(self, window: int | None) -> BlockMask:
        """FlexAttention's mask for a sliding window."""
        if window not in self._masks:
            self._masks[window] = flex_mask(self.segments, self.device, window)
        return self._masks[window]

    @cached_property
    def varlen(self) -> VarlenSequences:
        """The row as sequences for varlen attention."""
        return varlen_sequences(self.segments, self.device)


def blocks(segments: Segments) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries as (prompt, own): a query of `own` sees `prompt` and the tokens of `own` up to itself.

    A prompt with its first response is one block, and its `prompt` is empty. Each other response is a block.
    """
    start = 0
    for prompt_tokens, first, *others in segments:
        prompt = slice(start, start + prompt_tokens)
        own = slice(start, prompt.stop + first)
        yield slice(start, start), own
        for length in others:
            own = slice(own.stop, own.stop + length)
            if length:
                yield prompt, own
        start = own.stop


@dataclass(frozen=True)
class VarlenSequences:
    """A row as sequences for varlen attention: queries in the row's order, keys of a prompt once for each response.

    Query i of a sequence sees its first (keys - queries + i + 1) keys.

    Attributes:
        key_tokens: index in the row of each key's token, shape [keys].
        cu_seqlens_q: cumulative number of queries, int32, shape [sequences + 1].
        cu_seqlens_k: cumulative number of keys, int32, shape [sequences + 1].
        max_seqlen_q: most queries of a sequence.
        max_seqlen_k: most keys of a sequence.
        own_keys: index of the key of each token of the row in the token's own sequence, shape [tokens].
        copies: indices of a prompt token's keys in the sequences of further responses, 0 where there is none; shape
            [copies, tokens].
        copied: 1 where `copies` holds a key, else 0; shape [copies, tokens, 1, 1].
    """

    key_tokens: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    own_keys: Tensor
    copies: Tensor
    copied: Tensor


def varlen_sequences(segments: Segments, device: torch.device) -> VarlenSequences:
    """A prompt with its first response is one sequence; each other response is one, with the prompt before it."""
    total, further = sum(map(sum, segments)), len(segments[0]) - 2
    own_keys = torch.empty(total, dtype=torch.long)
    copies, copied = torch.zeros(2, further, total, dtype=torch.long)
    key_tokens, queries, keys = [], [0], [0]
    max_seqlen_k = copy = 0
    for prompt, own in blocks(segments):
        prompt_tokens = prompt.stop - prompt.start
        copy = copy + 1 if prompt_tokens else 0
        if prompt_tokens:
            copies[copy - 1, prompt] = torch.arange(keys[-1], keys[-1] + prompt_tokens)
            copied[copy - 1, prompt] = 1
        key_tokens += [torch.arange(part.start, part.stop) for part in (prompt, own)]
        length = prompt_tokens + own.stop - own.start
        own_keys[own] = torch.arange(keys[-1] + prompt_tokens, keys[-1] + length)
        queries.append(own.stop)
        keys.append(keys[-1] + length)
        max_seqlen_k = max(max_seqlen_k, length)
    cu_seqlens_q, cu_seqlens_k = torch.tensor([queries, keys], dtype=torch.int32)
    return VarlenSequences(
        torch.cat(key_tokens).to(device),
        cu_seqlens_q.to(device),
        cu_seqlens_k.to(device),
        int(cu_seqlens_q.diff().max()),
        max_seqlen_k,
        own_keys.to(device),
        copies.to(device),
        copied[..., None, None].to(device),
    )


def flex_mask(segments: Segments, device: torch.device, window: int | None = None) -> BlockMask:
    """FlexAttention's mask: a query sees earlier keys of its prompt and of its own response, within the window.

    The blocks to compute follow from the lengths of the segments. Nothing of the size [tokens, tokens] is allocated.
    """
    lengths = torch.tensor(segments)
    segment = torch.arange(lengths.numel())
    prompt = segment // lengths.shape[1] * lengths.shape[1]
    segment_of = segment.repeat_interleave(lengths.flatten())
    tokens = len(segment_of)
    counts = torch.zeros(-(-tokens // BLOCK), len(segment))  # tokens of each segment in each block
    counts.index_put_((torch.arange(tokens) // BLOCK, segment_of), torch.ones(tokens), accumulate=True)
    related = (segment[:, None] == segment) | (prompt[:, None] == segment)
    pairs = counts @ related.float() @ counts.T  # related pairs of a query and a key, in either order
    full = (pairs == BLOCK**2).tril(-1) if window is None else torch.zeros_like(pairs).bool()
    partial = (pairs > 0).tril() & ~full
    segment_of, prompt_of = segment_of.to(device), prompt[segment_of].to(device)
    position = _positions(segments).to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        other = segment_of[key]
        related = (query >= key) & ((other == segment_of[query]) | (other == prompt_of[query]))
        return related if window is None else related & (position[query] - position[key] < window)

    indices = (tensor for dense in (partial, full) for tensor in _block_indices(dense, device))
    return BlockMask.from_kv_blocks(*indices, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens))


def _positions(segments: Segments) -> Tensor:
    """The position of each token of the row in its prompt with its response."""
    ranges = [
        torch.arange(start, start + length)
        for prompt, *responses in segments
        for start, length in ((0, prompt), *((prompt, length) for length in responses))
    ]
    return torch.cat(ranges)


def _block_indices(dense: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many entries of each row are true, and the columns of these first; for one batch and head."""
    columns = dense.int().argsort(dim=-1, descending=True, stable=True)
    counts = dense.sum(dim=-1)
    return counts.int()[None, None].to(device), columns.int()[None, None].to(device)
