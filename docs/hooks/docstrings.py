"""Makes griffe read the docstrings of this package, which are in the style of Keras."""

import re
import textwrap

import griffe

# A capital or an underscore, and so nothing that is also an argument, such as `noise`.
LINKED = re.compile(r"(?<!`)`([A-Z]\w+|[a-z]+_\w+)`(?!`)")


class KerasDocstrings(griffe.Extension):
    """Adds the models, makes sections of Keras' headings and links of the names of the package."""

    def __init__(self):
        self.functions = []

    def on_function_instance(self, *, func, **_):
        """Remember the functions of packages.

        Args:
            func: a function.
        """
        if func.parent.is_module and func.parent.is_init_module:
            self.functions.append(func)

    def on_package(self, *, pkg, loader, **_):
        """Load `models/`, which is installed inside the package but stands beside it.

        Args:
            pkg: the package.
            loader: what loaded it.
        """
        if pkg.path != "keras_noisylb":
            return
        pkg.set_member("models", loader.load("models", try_relative_path=False))
        for function in self.functions:  # a file of the same name hides it from griffe
            function.parent.set_member(function.name, function)
        public = {name: f"{pkg.path}.{name}" for name in pkg.exports}
        for module in pkg.modules.values():
            if module.name in public:
                public |= {name: f"{module.path}.{name}" for name in module.exports or ()}
        for item in _documented(pkg, set()):
            item.docstring.value = _markdown(item, public)


def _documented(item, seen):
    """An object and all its members that have a docstring."""
    if item.docstring:
        yield item
    for member in item.members.values():
        if not member.is_alias and id(member) not in seen:
            seen.add(id(member))
            yield from _documented(member, seen)


def _markdown(item, public):
    """A docstring with griffe's sections, fenced examples and links."""
    text = item.docstring.value
    # griffe would take what stands before a colon for a type.
    text = re.sub(r"^(Returns:\n +`[^`\n]+`):", r"\1,", text, flags=re.MULTILINE)
    text = re.sub(r"^Call arguments:$", "Other Args: Call arguments", text, flags=re.MULTILINE)
    head, example, code = text.partition("\nExample:\n")
    if example:
        code = textwrap.dedent(code)
        if code.startswith(">>>"):
            code = f"```pycon\n{code}\n```"
        code = f"\n**Example**\n\n{code}"
    own = {item.name, *(p.name for p in getattr(item, "parameters", ()))}

    def link(match):
        name = match[1]
        known = name in public and name not in own
        return f"[`{name}`][{public[name]}]" if known else match[0]

    return LINKED.sub(link, head) + code
