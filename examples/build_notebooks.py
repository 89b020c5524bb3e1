"""Make the notebooks from their py:percent files: pair them through jupytext and execute them.

    pip install -e '.[notebooks]'
    python examples/build_notebooks.py [examples/notebooks/01_quick_start.py ...]

The `.py` files are the ones to edit. Every notebook is computed anew, in its own kernel, and the
cells are numbered, so that a notebook changes where its text or its results do.
"""

import argparse
import os
import pathlib
import re

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent / "notebooks"
# Written before TensorFlow has read how much it shall log.
LOG_LINE = re.compile(r"(WARNING: All log messages before absl|[IWEF]\d{4} ).*\n?")


def build(path):
    """Execute one notebook and write it beside its source.

    Args:
        path: `pathlib.Path` of the py:percent file.
    """
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number}"
    resources = {"metadata": {"path": path.parent}}
    nbclient.NotebookClient(
        notebook, timeout=1800, resources=resources, record_timing=False, coalesce_streams=True
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(without_logs, cell.outputs) if output]
    # Else the version of the machine's Python would be part of the notebook.
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path.with_suffix(".ipynb"))


def without_logs(output):
    """What a cell printed without TensorFlow's log, or `None` if nothing else is left.

    Args:
        output: an output of a cell.
    """
    if output.get("name") == "stderr":
        output["text"] = LOG_LINE.sub("", output["text"])
        return output if output["text"].strip() else None
    return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=pathlib.Path, default=sorted(FOLDER.glob("*.py")))
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for path in parser.parse_args().paths:
        print(path)
        build(path)
