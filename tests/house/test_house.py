"""The house is in order: what documents say of the code is so."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import backchannel
from backchannel.codes import ENDINGS
from backchannel.config import Settings, SettingsOptions

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src/backchannel").rglob("*.py"))
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("[A-Z]*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_what_the_package_exports_exists_and_is_sorted():
    assert backchannel.__all__ == sorted(backchannel.__all__, key=lambda n: (n.islower(), n))
    for name in backchannel.__all__:
        assert getattr(backchannel, name) is not None


@pytest.mark.parametrize(
    "name",
    [
        m.name
        for m in pkgutil.walk_packages(backchannel.__path__, "backchannel.")
        if "__main__" not in m.name
    ],
)
def test_every_module_says_what_it_exports(name):
    module = importlib.import_module(name)
    if module.__file__ and not module.__file__.endswith("__init__.py"):
        for exported in module.__all__:
            assert hasattr(module, exported), exported


def test_the_settings_editors_complete_are_the_settings():
    written = [field.name for field in dataclasses.fields(Settings)]
    assert list(SettingsOptions.__annotations__) == written


def test_every_setting_is_documented_with_its_default():
    described = (ROOT / "docs/settings.md").read_text()
    for field in dataclasses.fields(Settings):
        assert f"| `{field.name}` |" in described, field.name


def test_every_close_code_is_documented():
    described = (ROOT / "docs/close-codes.md").read_text()
    for ending in ENDINGS.values():
        come_back = {True: "yes", False: "no", None: "–"}[ending.come_back]
        assert f"| {ending.code} | {ending.meaning} | {come_back} |" in described


def test_the_version_is_the_changelogs_and_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"] == backchannel.__version__


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_files_a_document_names_exist(document):
    text = document.read_text()
    named = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|html|c))(?:::?\w+)?`", text)
    linked = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    places = (ROOT, ROOT / "src/backchannel", document.parent, ROOT / "examples")
    for name in {*named, *linked} - {"chat.py", "chat.html", "app.py", "FILE"}:
        assert any((place / name).exists() for place in places), f"{document.name} names {name}"


def test_every_test_that_the_page_on_security_names_exists():
    page = (ROOT / "docs/security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    sections = re.split("^## ", page, flags=re.MULTILINE)[1:-1]  # the last is on cookies' flags
    assert all("::test_" in section for section in sections)
    for file, name in named:
        assert re.search(rf"^(?:async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), (
            name
        )


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_fits_in_a_readers_head(source):
    assert len(source.read_text().splitlines()) <= 500, (
        "past 400 lines a file is discussed, past 500 split"
    )


def test_every_module_stands_in_the_architecture():
    described = (ROOT / "ARCHITECTURE.md").read_text()
    for source in SOURCES:
        name = source.relative_to(ROOT / "src/backchannel")
        if source.name not in {"__init__.py", "__main__.py"}:
            assert str(name) in described, f"ARCHITECTURE.md does not place {name}"
