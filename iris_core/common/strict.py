"""The base of every pydantic model here: settings, specs, manifests, measurements."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
