"""Imports go downwards: the floors are those of the table in CONTRIBUTING.md."""

import ast
import functools
import graphlib
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import keras_noisylb

ROOT = Path(__file__).parent.parent
TOPS = {
    "keras_noisylb": "keras_noisylb",
    "models": "keras_noisylb.models",
    "noisylb": "noisylb",
}
FLOOR = re.compile(r"^\| (\d+) \| ([^|]+) \|", re.MULTILINE)


def read_floors(text):
    """The table's rows as `{place: floor}`, places as `place` names them."""
    floors = {}
    for number, row in FLOOR.findall(text):
        for name in re.findall(r"`([\w.]+)`", row):
            assert name not in floors, f"{name} has two floors"
            floors[name] = int(number)
    return floors


def read_sources():
    """The sources of the package as `{module: text}`."""
    sources = {}
    for folder, package in TOPS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            sources[name] = file.read_text(encoding="utf-8")
    return sources


def place(module):
    """What has the floor of a module: a folder or file of the package, or a part of `noisylb`."""
    package, *rest = module.split(".")
    if package == "keras_noisylb":
        return rest[0] if rest else "keras_noisylb.__init__"
    return "noisylb.protocol" if rest[:1] == ["protocol"] else "noisylb"


@functools.cache
def imports(source, modules):
    """The imports of one module, wherever they stand, as `(line, imported module, name)`."""
    found, bound, attributes = [], {}, []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            ours = (a.name for a in node.names if a.name.partition(".")[0] in TOPS)
            found += [(node.lineno, name, "") for name in ours]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names if node.module.partition(".")[0] in TOPS else ():
                full = f"{node.module}.{alias.name}"
                if full in modules:
                    bound[alias.asname or alias.name] = full
                    found.append((node.lineno, full, ""))
                else:
                    found.append((node.lineno, node.module, alias.name))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.append(node)
    found += [(a.lineno, bound[a.value.id], a.attr) for a in attributes if a.value.id in bound]
    return found


def faults(sources, floors):
    """What is wrong with the imports, one line for each fault."""
    found, of_places, of_modules = [], {}, {}
    packages = {module.rpartition(".")[0] for module in sources}
    for module, source in sources.items():
        for line, imported, name in imports(source, frozenset(sources)):
            here, there = place(module), place(imported)
            of_modules.setdefault(module, set()).add(imported)
            where = f"{module}:{line} imports {imported} {name}".rstrip()
            if here != there:
                of_places.setdefault(here, set()).add(there)
                if floors[there] > floors[here]:
                    found.append(f"{where}: floor {floors[there]} from floor {floors[here]}")
            if re.match("_[^_]", name) and folder(module, packages) != folder(imported, packages):
                found.append(f"{where}: a private name of another folder")
    for graph in (of_places, of_modules):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            found.append("a circle: " + " <- ".join(error.args[1]))
    return found


def folder(module, packages):
    return module if module in packages else module.rpartition(".")[0]


FLOORS = read_floors((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
SOURCES = read_sources()


def test_every_module_has_a_floor():
    assert {place(module) for module in SOURCES} == set(FLOORS)


def test_imports_go_downwards():
    assert not faults(SOURCES, FLOORS)


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("keras_noisylb.types", "from keras_noisylb.noise import Noise", "floor 2 from floor 1"),
        ("keras_noisylb.gradients.batch", "import keras_noisylb", "floor 10 from floor 3"),
        ("noisylb.protocol.paper", "def f():\n    import noisylb.app", "floor 10 from floor 1"),
        ("keras_noisylb.noise.base", "from keras_noisylb import layers", ""),
        (
            "keras_noisylb.callbacks",
            "from keras_noisylb import diagnostics\nfrom keras_noisylb.diagnostics import gram",
            "",
        ),
        ("keras_noisylb.layers.ghosts", "from keras_noisylb.layers import replace", "a circle"),
        (
            "keras_noisylb.training.loop",
            "from keras_noisylb.optimizer import _of_inner",
            "a private name",
        ),
        (
            "keras_noisylb.training.loop",
            "from keras_noisylb import optimizer as o\no._of_inner",
            "a private name",
        ),
        ("keras_noisylb.training.loop", "from keras_noisylb.training.model import _check", ""),
    ],
)
def test_wrong_imports_are_found(module, line, fault):
    changed = {**SOURCES, module: SOURCES[module] + "\n" + line}
    found = faults(changed, FLOORS)
    assert any(fault in text for text in found) if fault else not found


def test_circles_on_one_floor_are_found():
    there = "from keras_noisylb.noise import base"
    back = "from keras_noisylb.layers import ghosts"
    changed = {
        **SOURCES,
        "keras_noisylb.layers.replace": there,
        "keras_noisylb.noise.fixed": back,
    }
    assert any("a circle" in text for text in faults(changed, FLOORS))


def shadowed(package):
    """The modules of a package whose names stand for something else in the package."""
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        value = getattr(package, module.name, None)
        if value is not None and not inspect.ismodule(value):
            found.append(f"{package.__name__}.{module.name}")
        elif module.ispkg:
            found += shadowed(importlib.import_module(f"{package.__name__}.{module.name}"))
    return found


def test_nothing_shadows_a_module(monkeypatch):
    assert shadowed(keras_noisylb) == []
    monkeypatch.setattr(keras_noisylb.noise, "base", lambda: None)
    assert shadowed(keras_noisylb) == ["keras_noisylb.noise.base"]
