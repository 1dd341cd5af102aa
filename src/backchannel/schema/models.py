"""pydantic's JSON Schema of models, in msgspec's words; imported where an application uses them."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from backchannel.schema.unsaid import BOUNDS_OF_NUMBERS

__all__ = ["AlwaysSent"]


class AlwaysSent(GenerateJsonSchema):
    """Says what keys are, and that what has a default is there all the same when it is sent."""

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """Say of keys what they have to be: pydantic leaves out that they are numbers."""
        found = super().dict_schema(schema)
        keys = schema.get("keys_schema", {})
        if kind := {"int": "integer", "float": "number"}.get(keys.get("type")):
            bounds = {word: keys[name] for word, name in BOUNDS_OF_NUMBERS.items() if name in keys}
            found.setdefault("propertyNames", {"format": kind, **bounds})
        if patterns := found.pop("patternProperties", None):  # it refuses all other keys
            ((pattern, found["additionalProperties"]),) = patterns.items()
            found["propertyNames"] = {"pattern": pattern}
        return found

    def datetime_schema(self, schema: Any) -> dict[str, Any]:
        """Say whether there is an offset, as of msgspec's types."""
        format_ = {"aware": "date-time", "naive": "date-time-local"}
        found = super().datetime_schema(schema)
        return {**found, "format": format_.get(schema.get("tz_constraint"), "iso-date-time")}

    def time_schema(self, schema: Any) -> dict[str, Any]:
        """Say whether there is an offset, as of msgspec's types."""
        format_ = {"aware": "time", "naive": "partial-time"}
        found = super().time_schema(schema)
        return {**found, "format": format_.get(schema.get("tz_constraint"), "iso-time")}

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Tell whether a field is always there."""
        if self.mode == "serialization" and field["type"] != "typed-dict-field":
            return not field.get("serialization_exclude")
        return super().field_is_required(field, total)
