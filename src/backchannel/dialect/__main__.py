"""Writes the JSON Schema files of docs/protocol.md: ``python -m backchannel.dialect FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from backchannel.dialect.frames import schema

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for sender in ("client", "server"):
        text = json.dumps(schema(sender), indent=2, ensure_ascii=False)
        (folder / f"{sender}.schema.json").write_text(text + "\n", encoding="utf-8")
