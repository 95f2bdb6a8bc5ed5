"""How large a model is: what a plan needs to know of it. `iris_core.modeling.sizes` measures it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    parameters: int
    adapter: int
    matrices: int
    layers: int
    matrices_in_layer: int
    hidden: int
    inner: int

    @property
    def lm_head(self) -> int:
        """Parameters of the lm_head."""
        return self.matrices - self.layers * self.matrices_in_layer
