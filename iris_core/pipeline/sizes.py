"""How large a model is: what a plan needs to know of it. `iris_core.modeling.sizes` measures it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def _as_many_keys(found: dict[str, Any]) -> int:
    """`Sizes.attention` where an earlier version of IRIS measured the others: the most that is usual."""
    return 2 * int(found["hidden"])


class Sizes(BaseModel):
    """The numbers that the memory of a model follows from.

    Attributes:
        parameters: all of them; tied ones count once.
        adapter: parameters of the adapter; 0 where the model has none.
        matrices: parameters of all weights that matmuls read, the lm_head and experts among them.
        layers: how many decoder layers.
        matrices_in_layer: the same of one decoder layer, on average.
        hidden: hidden size.
        inner: width of the feed-forward layers that one token passes in a layer.
        attention: numbers in all queries and all keys of a token.
        norms: how many norms of hidden states a layer has.
        head_norms: whether a layer has norms of queries and keys, too.
        fused: whether our kernels fit its layers, which then keep less for backward (`iris_core.modeling.patches`).
        experts: how many a router chooses for a token; 0 where there is none.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    parameters: int
    adapter: int
    matrices: int
    layers: int
    matrices_in_layer: int
    hidden: int
    inner: int
    attention: int = Field(default_factory=_as_many_keys)
    norms: int = 2
    head_norms: bool = False
    fused: bool = False
    experts: int = 0

    @property
    def lm_head(self) -> int:
        """Parameters of the lm_head."""
        return self.matrices - self.layers * self.matrices_in_layer
