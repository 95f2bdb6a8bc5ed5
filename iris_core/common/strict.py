"""The base class of all pydantic models here: settings, specs, manifests, measurements."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _number(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_number)]  # may be NaN, which JSON writes as null


class Strict(BaseModel):
    """An immutable pydantic model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
