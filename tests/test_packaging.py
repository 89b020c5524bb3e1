"""The declared dependencies agree with the imports of the source."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import keras_noisylb
from noisylb.protocol.extra import MODULES as MODULES_OF_CLI

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
# Distributions that are imported by another name.
MODULES = {
    "keras-tuner": "keras_tuner",
    "tensorflow-datasets": "tensorflow_datasets",
    "importlib-resources": "importlib_resources",
}
OURS = {"keras_noisylb", "noisylb"}
# tensorflow-datasets imports it when it downloads, and does not declare it.
ON_BEHALF_OF_OTHERS = {"importlib_resources"}
EXTRAS = PROJECT["optional-dependencies"]


def modules(requirements):
    names = [re.match(r"[\w-]+", requirement).group() for requirement in requirements]
    return {MODULES.get(name, name) for name in names}


def imported(folders):
    return imported_by(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def imported_by(files):
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - OURS


SOURCE = imported(["keras_noisylb", "noisylb", "models"])


def test_what_is_imported_is_declared():
    assert {"keras", "tensorflow_datasets"} <= SOURCE
    optional = modules([*EXTRAS["tuner"], *EXTRAS["cli"]])
    assert not SOURCE - modules(PROJECT["dependencies"]) - optional


def test_what_is_declared_is_imported():
    assert modules(PROJECT["dependencies"]) - SOURCE == ON_BEHALF_OF_OTHERS
    assert set(MODULES_OF_CLI) == modules(EXTRAS["cli"]) <= SOURCE


def test_only_experiments_and_commands_import_what_the_extra_cli_installs():
    folders = [f for f in (ROOT / "keras_noisylb").iterdir() if f.name != "experiments"]
    found = imported([*(f.relative_to(ROOT) for f in folders), "models"])
    assert "keras" in found and not found & set(MODULES_OF_CLI)
    # Tables in the terminal are of commands and experiments.
    plain = [f for f in (ROOT / "noisylb" / "protocol").glob("*.py") if f.name != "terminal.py"]
    assert not imported_by(plain) & set(MODULES_OF_CLI)


WITHOUT_CLI = """
import sys, keras, numpy as np
sys.modules |= dict.fromkeys({missing}, None)  # now, because Keras needs rich itself
import keras_noisylb as nlb
x, y = np.ones((8, 3), "float32"), np.zeros((8, 1), "float32")
network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model = nlb.NoisyModel(network)
noise = nlb.DiagonalFisher(2)
model.compile(nlb.NoisyOptimizer(keras.optimizers.SGD(0.1), noise, noise_fraction=0.5), "mse")
model.fit(x, y, 8, 2, 0)
nlb.diagnostics.gradient_variance(network, "mse", x, y, batch_size=4, draws=3, verbose=1)
print(nlb.report(network, noise, batch_size=8))
try:
    nlb.compare(lambda: network, (x, y))
except ImportError as error:
    print("compare:", error)
import noisylb.main
"""


@pytest.mark.parametrize("missing", [MODULES_OF_CLI, ("rich",)])
def test_without_the_extra_cli(missing):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CLI.format(missing=missing)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    needs = (
        f"{', '.join(missing)} cannot be imported. The command line and keras_noisylb.compare "
        "need the extra `cli`. In the clone run: pip install -e '.[cli]'"
    )
    assert done.stdout.splitlines()[-1] == f"compare: {needs}"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"noisylb: error: {needs}"
    assert "Traceback" not in done.stderr


def test_others_still_do_not_declare_what_they_import():
    declared = metadata.requires("tensorflow-datasets")
    found = [line for line in declared if line.replace("_", "-").startswith("importlib-resources")]
    assert all('python_version < "3.9"' in line for line in found)


def test_every_requirement_says_what_it_is_for():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    extras = EXTRAS.values()
    for requirement in {*PROJECT["dependencies"], *(r for extra in extras for r in extra)}:
        if not requirement.startswith(PROJECT["name"]):
            assert any(f'"{requirement}"' in line and "#" in line for line in lines), requirement


def test_import_adds_nothing_to_what_keras_and_tensorflow_import():
    code = (
        "import sys, keras, tensorflow; before = set(sys.modules); import keras_noisylb; "
        "print(*(set(sys.modules) - before))"
    )
    added = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    assert "keras_noisylb" in added
    heavy = modules([*PROJECT["dependencies"], *EXTRAS["cli"]]) | {"keras_tuner"}
    assert not [name for name in added if name.partition(".")[0] in heavy]


def test_version_stands_in_one_place():
    assert keras_noisylb.__version__ == metadata.version(PROJECT["name"]) == PROJECT["version"]
    for folder in ("keras_noisylb", "noisylb", "models"):
        for file in (ROOT / folder).rglob("*.py"):
            assert f'"{PROJECT["version"]}"' not in file.read_text(), file


def test_changelog_and_citation_are_of_this_version():
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version


def test_every_package_is_distributed():
    listed = set(SETTINGS["tool"]["setuptools"]["packages"]) - {"keras_noisylb.models"}
    files = [f for top in ("keras_noisylb", "noisylb") for f in (ROOT / top).rglob("__init__.py")]
    assert {".".join(file.parent.relative_to(ROOT).parts) for file in files} == listed


def test_files_beside_the_code_are_found():
    files = resources.files("keras_noisylb")
    assert (files / "py.typed").is_file()
    assert (files / "data/fashion_mnist_small/1.0.0/dataset_info.json").is_file()
