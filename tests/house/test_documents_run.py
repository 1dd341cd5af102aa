"""Every Python block in the documents runs, and every test in them passes."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?```python\n(.*?)```", re.DOTALL)
ENGINE = "redis://localhost:6379/0"
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if any(not skipped for skipped, _ in BLOCK.findall(path.read_text()))
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_of_a_document_runs(document, tmp_path, monkeypatch, request):
    """The blocks of one document run in one module, one after the other.

    Where they name an engine there is one, of the test's own.
    """
    for page in ("chat.html", "names.html"):
        (tmp_path / page).write_text("<!doctype html><title>chat</title>")
    module = types.ModuleType("document")
    module.__file__ = str(tmp_path / "document.py")
    monkeypatch.setitem(sys.modules, "document", module)
    monkeypatch.chdir(tmp_path)
    text = document.read_text()
    if any(ENGINE in code for skipped, code in BLOCK.findall(text) if not skipped):
        text = text.replace(ENGINE, request.getfixturevalue("redis_server").url)
    for found in BLOCK.finditer(text):
        if found[1]:
            continue
        line = text[: found.start()].count("\n") + 1
        code = compile("\n" * line + found[2], str(document), "exec")
        exec(code, module.__dict__)
        for name, function in list(vars(module).items()):
            if name.startswith("test_") and inspect.iscoroutinefunction(function):
                asyncio.run(function())
                delattr(module, name)


def test_the_page_on_testing_is_a_test_file(tmp_path):
    """pytest itself runs its blocks, set up as the page says."""
    text = (ROOT / "docs/testing.md").read_text()
    python = "\n\n".join(found[2] for found in BLOCK.finditer(text))
    (tmp_path / "test_page.py").write_text(python)
    (tmp_path / "pyproject.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{python.count('def test_')} passed" in run.stdout
