"""lm-evaluation-harness's vLLM model, with log-likelihoods from the prefix cache.

The harness asks vLLM for the log-probabilities of a whole prompt for each choice, and vLLM computes such a prompt in
full each time. For a short choice a few next-token distributions are enough: they are asked for as one-token
generations, and the question (and the examples before it) come from vLLM's prefix cache. With an adapter every choice
is scored that way: the log-probabilities that vLLM gives for prompts are wrong then, or it fails
(vllm-project/vllm 16668, 51594).
"""

from __future__ import annotations

from typing import Any

from vllm import SamplingParams

from iris_core.data.templates import ChatPrompts
from iris_core.modeling.patches.vllm_version import cpu_build_counts_as_vllm

with cpu_build_counts_as_vllm():
    from lm_eval.models.vllm_causallms import VLLM

SHORT = 4  # tokens of a choice up to which asking for each token is less work than the whole prompt
CHUNK = 2048  # requests that are prepared together


class PrefixVLLM(ChatPrompts, VLLM):
    """`VLLM` without progress bars, with shared prefixes for short log-likelihood requests.

    Attributes:
        stop_token_ids: tokens that end what it generates, in addition to those that vLLM stops at by default.
    """

    stop_token_ids: list[int]

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
            each.stop_token_ids = list({*each.stop_token_ids, *self.stop_token_ids})
        prompts = [{"prompt_token_ids": list(tokens)} for tokens in requests]
        return self.model.generate(prompts, sampling_params, lora_request=self.lora_request, use_tqdm=False)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True) -> Any:
        short: list[int] = []
        other: list[int] = []
        for index, (_, _, continuation) in enumerate(requests):
            stepwise = self.lora_request is not None or len(continuation) <= SHORT
            (short if stepwise else other).append(index)
        scores: dict[int, tuple[float, bool]] = {}
        if other:
            whole = super()._loglikelihood_tokens([requests[i] for i in other], disable_tqdm=True)
            scores.update(zip(other, whole, strict=True))
        short.sort(key=lambda i: (requests[i][1], requests[i][2]))  # neighbours share the most
        for start in range(0, len(short), CHUNK):
            chunk = short[start : start + CHUNK]
            scores.update(zip(chunk, self._score([requests[i][1:] for i in chunk]), strict=True))
        return [scores[index] for index in range(len(requests))]

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
        completions = dict(zip(wanted, outputs, strict=True))
        return [
            (
                sum(completions[prefix].logprobs[0][token].logprob for prefix, token in path),
                all(completions[prefix].token_ids[0] == token for prefix, token in path),
            )
            for path in steps
        ]


def _steps(context: list[int], continuation: list[int], longest: int) -> list[tuple[tuple[int, ...], int]]:
    """Each token of `continuation` with the prefix that predicts it; both truncated on the left to `longest` tokens."""
    tokens = tuple(context + continuation)[-longest:]
    start = len(tokens) - len(continuation)
    return [(tokens[:index], tokens[index]) for index in range(start, len(tokens))]
