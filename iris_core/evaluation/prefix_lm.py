"""lm-evaluation-harness's transformers model, with every shared prefix computed once.

Log-likelihoods run on the rows of `iris_core.evaluation.prefix_tree`. A batch that generates starts from one KV cache
of what its prompts share (the few-shot examples). The numbers are those of the harness's own model. Requests are left
to the harness where a row of shared prefixes would change them: for models with a recurrent state, and for prompts
longer than a sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import DynamicCache

from iris_core.data.templates import ChatPrompts
from iris_core.evaluation.prefix_tree import ROW_TOKENS, Request, Row, rows
from iris_core.modeling import architectures
from iris_core.modeling.padding import sees_padding

MIN_SHARED = 16  # tokens of a shared prefix that are worth a forward pass of their own
LOGIT_ROWS = 256  # rows of logits that are copied to fp32 together
GPU_ROW_TOKENS = 4096


@contextmanager
def half_the_threads() -> Iterator[None]:
    """Halves PyTorch's threads, for token-by-token generation on a CPU.

    It is bound by memory, and waits for the slowest thread at every step: two threads on two idle cores gain a quarter
    over one; on cores that are in use, they lose up to nine tenths.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class PrefixLM(ChatPrompts, HFLM):
    """`HFLM` for a causal model that is already loaded, with SDPA attention.

    Args:
        model: a transformers model, or a PEFT model around one.
        tokenizer: its tokenizer.
        batch_size: prompts that generate together.
        max_length: tokens that the model reads at once; None: what its configuration says.

    Attributes:
        stop_token_ids: tokens that end what it generates; None: those of the model's generation_config.
    """

    stop_token_ids: list[int] | None = None
    batch_size_per_gpu: int  # the harness's own

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int | None = None):
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """As the harness's, without its progress bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """As the harness's, without its progress bar; one by one where padding changes what the model generates."""
        size, self.batch_size_per_gpu = self.batch_size_per_gpu, self._generate_batch_size
        try:
            return super().generate_until(requests, disable_tqdm=True)
        finally:
            self.batch_size_per_gpu = size

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: Any = None) -> Any:
        items = [Request(context, continuation) for _, context, continuation in requests]
        if not self._can_share(items):
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        logprobs, greedy = [0.0] * len(items), [True] * len(items)
        row_tokens = ROW_TOKENS if self.device.type == "cpu" else GPU_ROW_TOKENS
        for row in rows(items, self.max_length, row_tokens):
            for owner, logprob, is_top in zip(row.owners, *self._score(row), strict=True):
                logprobs[owner] += logprob
                greedy[owner] &= is_top
        return list(zip(logprobs, greedy, strict=True))

    def _can_share(self, items: list[Request]) -> bool:
        """Whether a row of shared prefixes gives the numbers of separate rows: full attention over the whole prompt."""
        longest = max(len(item.inputs(self.max_length)) for item in items)
        return self.only_attends and self._is_within_window(longest)

    def _score(self, row: Row) -> tuple[list[float], list[bool]]:
        """Log-probability in nats of each scored token, and whether it is the most likely one."""
        sources, inverse = torch.tensor(row.sources).unique(return_inverse=True)
        logits = self.model(
            input_ids=torch.tensor([row.input_ids], device=self.device),
            position_ids=torch.tensor([row.positions], device=self.device),
            attention_mask=self._mask(row),
            logits_to_keep=sources.to(self.device),
            use_cache=False,
        ).logits[0]
        targets, inverse = torch.tensor(row.targets, device=self.device), inverse.to(self.device)
        logprobs, top = torch.empty(len(targets), device=self.device), logits.argmax(dim=-1)
        for start in range(0, len(targets), LOGIT_ROWS):  # many choices may be predicted from one token
            part = slice(start, start + LOGIT_ROWS)
            part_logits = logits[inverse[part]].float()
            target_logits = part_logits.gather(1, targets[part, None])[:, 0]
            logprobs[part] = target_logits - part_logits.logsumexp(dim=-1)
        return logprobs.tolist(), (top[inverse] == targets).tolist()

    def _mask(self, row: Row) -> Tensor:
        """The row's mask in the form that the model's attention takes: eager attention adds it to the scores."""
        mask = row.mask().to(self.device)
        if self.model.config._attn_implementation != "eager":
            return mask
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(~mask, lowest)

    @torch.inference_mode()
    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        settings |= {"eos_token_id": self.stop_token_ids} if self.stop_token_ids else {}
        attention = settings.get("attention_mask")
        if attention is None or not self.only_attends:
            return super()._model_generate(context, max_length, stop, **settings)
        shared = _shared_prefix(context, attention) if self._is_within_window(max_length) else 0
        context, attention = _prefix_first(context, attention, shared)
        cache = prefill(self.model, context, attention, shared)
        settings |= {"attention_mask": attention, "past_key_values": cache}
        with half_the_threads():
            return super()._model_generate(context, max_length, stop, **settings)

    @cached_property
    def _generate_batch_size(self) -> int:
        return 1 if sees_padding(self.model) else self.batch_size_per_gpu

    @cached_property
    def only_attends(self) -> bool:
        """Whether every layer attends to all earlier tokens, or to a window of them, by transformers' masks.

        Other layers (state spaces, convolutions, chunks, attention with masks of its own) depend on a token's index in
        the row, not on its position alone.
        """
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
        counts = model._is_stateful or getattr(model.config, "is_decoder", False)  # as RoBERTa does
        masked = model._supports_attention_backend and not counts
        if not masked or not set(kinds) <= {"full_attention", "sliding_attention"}:
            return False
        remote = type(model).__module__.startswith("transformers_modules")
        return architectures.probe(model.config, trust_remote_code=remote).short is None

    def _is_within_window(self, tokens: int) -> bool:
        """Whether the model's window holds `tokens` tokens, padding included."""
        window = getattr(self.model.config.get_text_config(), "sliding_window", None)
        return window is None or tokens <= window


def prefill(model: Any, context: Tensor, attention: Tensor, shared: int) -> DynamicCache:
    """The KV cache of all but the last token of each prompt, with the `shared` first tokens computed once for all.

    Args:
        model: a causal language model.
        context: token ids, shape [prompts, tokens]; padding anywhere after the shared tokens.
        attention: 1 for tokens, 0 for padding, shape [prompts, tokens].
        shared: how many tokens all rows begin with.
    """
    cache = DynamicCache(config=model.config)
    if shared:
        model(input_ids=context[:1, :shared], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(context))
    if context.shape[1] - 1 > shared:
        positions = (attention.cumsum(dim=-1) - 1).clamp_min(0)
        model(
            input_ids=context[:, shared:-1],
            attention_mask=attention[:, :-1],
            position_ids=positions[:, shared:-1],
            past_key_values=cache,
            logits_to_keep=1,
        )
    return cache


def _shared_prefix(context: Tensor, attention: Tensor) -> int:
    """How many tokens all prompts of a left-padded batch begin with, the last token of each excluded.

    0 where they are fewer than `MIN_SHARED`.
    """
    if len(context) == 1:
        return 0
    prompts = [row[mask.bool()].tolist() for row, mask in zip(context, attention, strict=True)]
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    shared = next((i for i in range(limit) if first[i] != last[i]), limit)
    return shared if shared >= MIN_SHARED else 0


def _prefix_first(context: Tensor, attention: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """Moves the padding of a left-padded batch behind the first `shared` tokens of each prompt."""
    context, attention = context.clone(), attention.clone()
    for row, mask in zip(context, attention, strict=True):
        padding = len(mask) - int(mask.sum())
        prefix, pad = row[padding : padding + shared].clone(), row[:padding].clone()
        row[:shared], row[shared : shared + padding] = prefix, pad
        mask[:shared], mask[shared : shared + padding] = 1, 0
    return context, attention
