"""Build the notebooks from their py:percent files with jupytext, and execute them.

    pip install -e '.[notebooks]'
    python examples/build_notebooks.py [examples/notebooks/01_batch_size.py ...]

Edit only the `.py` files. Every notebook is executed in a new kernel. Cells get numbers as
identifiers, so that a notebook file changes only where its text or its results change.
"""

import argparse
import os
import pathlib
import re

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent / "notebooks"
# TensorFlow writes these lines before it reads its log level.
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
    # Otherwise the notebook would contain the Python version of this machine.
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path.with_suffix(".ipynb"))


def without_logs(output):
    """An output of a cell without TensorFlow's log lines, or `None` if it is then empty.

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
