"""Every public symbol has types; `.ci/types` checks a program that uses them with mypy."""

import ast
import importlib
import inspect
import pathlib

import keras_noisylb

PROGRAM = pathlib.Path(__file__).parent / "typed_program.py"
SUBPACKAGES = (
    "callbacks", "data", "diagnostics", "gradients", "models", "noise", "quadratic", "schedules",
    "tuning",
)  # fmt: skip


def public_symbols():
    submodules = [importlib.import_module(f"keras_noisylb.{name}") for name in SUBPACKAGES]
    for module in (keras_noisylb, *submodules):
        own = [n for n, v in vars(module).items() if inspect.getmodule(v) is module]
        own = [n for n in own if not n.startswith("_")]
        for name in getattr(module, "__all__", own):
            yield f"{module.__name__}.{name}", getattr(module, name)


def functions(name, symbol):
    """The functions behind a public symbol: itself, or all that its class and our bases define."""
    if inspect.isfunction(symbol):
        yield name, symbol
    if not inspect.isclass(symbol):
        return
    for owner in symbol.__mro__:
        if not owner.__module__.startswith("keras_noisylb"):
            continue
        for member, value in vars(owner).items():
            value = getattr(value, "fget", getattr(value, "__func__", value))
            public = not member.startswith("_") or member in {"__init__", "__call__"}
            if public and inspect.isfunction(value) and value.__name__ != "<lambda>":
                yield f"{owner.__qualname__}.{member}", value


def missing(function):
    found = inspect.signature(function)
    named = [(p.name, p.annotation) for p in found.parameters.values()]
    named = [(n, a) for n, a in named if n not in {"self", "cls"}]
    named.append(("return", found.return_annotation))
    return [name for name, annotation in named if annotation is inspect.Signature.empty]


def test_what_is_missing_is_found():
    def half(a: int, b, *c): ...

    assert missing(half) == ["b", "c", "return"]


SYMBOLS = dict(public_symbols())
FUNCTIONS = {n: f for name, symbol in SYMBOLS.items() for n, f in functions(name, symbol)}


def test_something_is_checked():
    expected = {"keras_noisylb.report", "NoisyModel.fit", "Noise.sample", "Quadratic.__init__"}
    assert expected <= FUNCTIONS.keys()


def test_signatures_have_types():
    assert not {name: missing(f) for name, f in FUNCTIONS.items() if missing(f)}


def test_program_uses_every_public_symbol():
    nodes = list(ast.walk(ast.parse(PROGRAM.read_text())))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    assert {name.rpartition(".")[2] for name in SYMBOLS} <= used
