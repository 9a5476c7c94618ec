"""Options of factories, as their source files tell them."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from fedjax_masks.algorithms import registry
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.lazy import load
from fedjax_masks.core.options import Rate, is_plain
from fedjax_masks.core.signatures import REQUIRED, signature_of
from fedjax_masks.experiment import config
from fedjax_masks.models.registry import MODELS
from fedjax_masks.simulation import AUTO

SOURCES = {name: str(entry.source) for name, entry in registry.REGISTRY.items()} | MODELS.sources
LATE = '''"""Annotations as text, one of which exists for type checkers alone."""
from __future__ import annotations
from typing import TYPE_CHECKING
from fedjax_masks.core.options import Rate
if TYPE_CHECKING:
    from nowhere import Anything

def factory(model, trainer, *, rate: Rate = 0.5, other: Anything | None = None, width=3, **training):
    """Makes nothing."""
'''


@pytest.mark.parametrize("name", SOURCES)
def test_the_source_tells_what_the_function_does(name):
    read, found = signature_of(SOURCES[name]), signature_of(load(SOURCES[name]))
    assert list(read.options) == list(found.options)
    assert (read.doc, read.summary) == (found.doc, found.summary)
    for key, option in read.options.items():
        assert option.default == found.options[key].default
        assert is_plain(option.annotation) == is_plain(found.options[key].annotation)
        assert isinstance(option.annotation, str) or option.annotation == found.options[key].annotation


def test_a_default_that_is_no_literal_is_imported():
    options = signature_of("fedjax_masks.simulation.engine:make_simulation").options
    assert options["storage"].default is AUTO
    assert options["cohort"].default is REQUIRED


def test_an_unknown_type_is_no_key_and_hides_no_other(tmp_path, monkeypatch):
    (tmp_path / "late_annotations.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    found = signature_of("late_annotations:factory")
    assert {key: is_plain(option.annotation) for key, option in found.options.items()} == {
        "rate": True,
        "other": False,
        "width": True,
    }
    assert found.options["rate"].annotation == Rate
    assert found.summary == "Annotations as text, one of which exists for type checkers alone."


@pytest.fixture
def points(monkeypatch):
    """Entry points of other packages, by name; none of the installed ones."""
    found: dict[str, EntryPoint] = {}
    monkeypatch.setattr(registry, "_entry_points", lambda: found)

    def add(name: str, value: str) -> None:
        found[name] = EntryPoint(name, value, registry.GROUP)

    return add


def test_an_entry_point_leads_to_a_factory_or_an_entry(points, tmp_path, monkeypatch):
    entry = "\nfrom fedjax_masks.algorithms.registry import Entry\nENTRY = Entry(factory, 'adam', 0.5, 2)\n"
    (tmp_path / "own_entries.py").write_text(LATE + entry)
    monkeypatch.syspath_prepend(tmp_path)
    points("bare", "own_entries:factory")
    points("full", "own_entries:ENTRY")
    made = [config.make_config({"algorithm.name": name}) for name in ("bare", "full")]
    assert [each.algorithm.options["lr"] for each in made] == [0.03, 0.5]
    assert [each.training.epochs for each in made] == [1, 2]
    assert made[0].algorithm.options["rate"] == 0.5
    assert "other" not in made[0].algorithm.options


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_package:factory", "must be importable as no_such_package:factory (ModuleNotFoundError"),
        ("math:no_such_name", "must be importable as math:no_such_name (AttributeError"),
        ("math:pi", "must be a factory or an Entry; math:pi is a float"),
    ],
)
def test_a_broken_package_is_named_and_hides_no_other(points, value, words):
    points("broken", value)
    with pytest.raises(UserError) as caught:
        config.make_config({"algorithm.name": "broken"})
    assert str(caught.value).startswith(f"algorithm.name=broken: {words}")
    assert "broken" in registry.names()
    assert registry.importable() == sorted(registry.REGISTRY)
    assert config.owners("algorithm.mu") == ["fedprox"]
    with pytest.raises(UserError, match=r"algorithm\.name: must be given"):
        config.make_config({"rounds": 3})


def test_options_are_read_where_no_source_can_be_imported():
    code = """
import sys
sys.modules["jax"] = None
from fedjax_masks.algorithms.registry import REGISTRY, parameters
print(*(name for name in REGISTRY if parameters(name) is not None))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(registry.REGISTRY)
