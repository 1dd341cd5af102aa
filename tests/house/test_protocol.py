"""docs/protocol.md: its schemas are those of the code, and its examples are frames."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from speaking import SCHEMAS, VALID

from backchannel.dialect.frames import schema

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("sender", ["client", "server"])
def test_the_schema_files_are_those_of_the_code(sender):
    written = json.loads((SCHEMAS / f"{sender}.schema.json").read_text(encoding="utf-8"))
    assert written == schema(sender), "write them anew: python3 dev.py fix"


def examples():
    """Yield each JSON frame of the page; those with an ellipsis are not whole."""
    for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL):
        for text in re.split(r"\n(?=\{)", block.strip()):
            yield json.loads(text)
    for text in re.findall(r"`(\{\"type\".*?\})`", TEXT):
        yield json.loads(text)
    talk = TEXT[TEXT.index("## An example") :]
    for text in re.findall(r"\{\"type\"[^─◀\n]*\}", talk):
        if "…" not in text:
            yield json.loads(text)


def test_every_example_of_the_page_is_a_frame_of_one_side():
    found = list(examples())
    assert len(found) > 30
    strange = [one for one in found if not any(valid.is_valid(one) for valid in VALID.values())]
    assert strange == []


def test_every_type_has_its_place_on_the_page():
    types = {name for sender in VALID for name in schema(sender)["discriminator"]["mapping"]}
    assert {name for name in types if f"`{name}`" not in TEXT and f'"{name}"' not in TEXT} == set()
