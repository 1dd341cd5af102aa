"""pydantic's JSON Schema of models as they are sent; imported where an application uses them."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

__all__ = ["AlwaysSent"]


class AlwaysSent(GenerateJsonSchema):
    """Says that what has a default is there all the same when a model is sent."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Tell whether a field is always there."""
        if self.mode == "serialization" and field["type"] != "typed-dict-field":
            return not field.get("serialization_exclude")
        return super().field_is_required(field, total)
