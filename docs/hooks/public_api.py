"""Fails the build where a public symbol has no entry on a page of the API.

Public is what `__all__` of the package lists, and `__all__` of each module that is listed there;
and that of `tuning`, which the package does not import because KerasTuner is an extra.
"""

import importlib
import inspect
import pathlib
import re

PACKAGE = "keras_noisylb"
EXTRA = "keras_noisylb.tuning"


def public_symbols(package: str = PACKAGE) -> dict[str, object]:
    """Every public symbol but the modules.

    Args:
        package: name of a module.

    Returns:
        `{dotted name: symbol}`; a symbol that two modules list is there twice.
    """
    module = importlib.import_module(package)
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == package]
    found = {}
    for name in getattr(module, "__all__", [n for n in own if not n.startswith("_")]):
        symbol = getattr(module, name)
        if inspect.ismodule(symbol):
            found |= public_symbols(symbol.__name__)
        else:
            found[f"{package}.{name}"] = symbol
    return found


def missing(pages: list[str]) -> list[str]:
    """Public symbols that no page documents.

    Args:
        pages: Markdown of the pages.

    Returns:
        Their dotted names.
    """
    identifiers = re.findall(r"^::: (\S+)", "\n".join(pages), re.MULTILINE)
    documented = {id(resolve(identifier)) for identifier in identifiers}
    public = public_symbols() | public_symbols(EXTRA)
    return [name for name, symbol in public.items() if id(symbol) not in documented]


def resolve(identifier: str) -> object:
    """What a dotted name stands for.

    Args:
        identifier: of something in a module.

    Returns:
        The object.
    """
    module, _, name = identifier.rpartition(".")
    return getattr(importlib.import_module(module), name)


def on_pre_build(config):
    """MkDocs calls it before the build.

    Args:
        config: of MkDocs.

    Raises:
        PluginError: if a public symbol is missing.
    """
    from mkdocs.exceptions import PluginError  # here, so that the tests need no MkDocs

    folder = pathlib.Path(config["docs_dir"]) / "api"
    names = missing([page.read_text(encoding="utf-8") for page in sorted(folder.glob("*.md"))])
    if names:
        raise PluginError(
            f"Public symbols without an entry in docs/api: {', '.join(names)}. "
            f"Add `::: {names[0]}` and so on to the page where they belong."
        )
