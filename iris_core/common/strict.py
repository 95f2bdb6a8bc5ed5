"""The base class of all pydantic models here: settings, specs, manifests, measurements."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """An immutable pydantic model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
