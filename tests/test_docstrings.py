"""Docstrings of the public API name every argument; those of internal helpers need not."""

import inspect
import re

from test_types import SYMBOLS

SECTION = re.compile(r"^(?:Args|Call arguments|Attributes):\n((?: .*\n|\n)*)", re.MULTILINE)
PACKAGE = "keras_noisylb"
EXPLAINED_AT = {
    f"{PACKAGE}.models.{n}": f"{PACKAGE}.models.{family}"
    for n, family in (("ResNet44", "ResNet"), ("ResNet44x2", "ResNet"), ("VGG16", "VGG"))
}
ENTRY = re.compile(r"^    (\w+(?:, \w+)*):", re.MULTILINE)


def undocumented(function, docstring):
    """The arguments of a function that a docstring does not name."""
    entries = "".join(SECTION.findall(inspect.cleandoc(docstring or "") + "\n"))
    documented = {name for entry in ENTRY.findall(entries) for name in entry.split(", ")}
    parameters = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = {p.name for p in parameters if p.kind not in variable}
    return sorted(names - documented - {"self", "cls"})


def functions_and_docstrings():
    """Functions, classes, and the methods whose docstring has a section for arguments."""
    for name, symbol in SYMBOLS.items():
        members = vars(symbol).items() if inspect.isclass(symbol) else ()
        for member, function in members:
            if inspect.isfunction(function) and SECTION.search(
                inspect.cleandoc(function.__doc__ or "")
            ):
                yield f"{name}.{member}", function, function.__doc__
        made_by = symbol.__init__ if inspect.isclass(symbol) else symbol
        if inspect.isfunction(made_by) and made_by.__module__.startswith(PACKAGE):
            yield name, symbol, SYMBOLS[EXPLAINED_AT.get(name, name)].__doc__


def test_what_is_missing_is_found():
    def function(x, y, *, first=1, second=2, **others):
        """A function.

        Args:
            x, y: data: the first
                part: and more.
            first: a number.

        Returns:
            second: a number.
        """

    assert undocumented(function, function.__doc__) == ["second"]
    assert undocumented(function, None) == ["first", "second", "x", "y"]


def test_public_docstrings_name_every_argument():
    found = {n: undocumented(f, doc) for n, f, doc in functions_and_docstrings()}
    name = "keras_noisylb.NoisyModel"
    assert {name, f"{name}.monitor", "keras_noisylb.report"} <= found.keys()
    assert "keras_noisylb.diagnostics.Hessian.product" in found
    assert not {name: names for name, names in found.items() if names}
