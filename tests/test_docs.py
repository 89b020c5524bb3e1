"""The pages of the documentation: their Python runs as printed, and no public symbol is missing.

Pages whose programs repeat, as a whole, what the tests of their parts check are slow.
"""

import functools
import importlib.util
import pathlib
import re

import code_blocks
import few_images
import numpy as np
import pytest
import typer

from noisylb.main import app

DOCS = code_blocks.ROOT / "docs"
API = sorted((DOCS / "api").glob("*.md"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(monkeypatch):
    """A function that sets the number of training images."""
    return functools.partial(few_images.use, monkeypatch)


def run(page, replace=()):
    return code_blocks.run(DOCS / f"{page}.md", replace)


PLAIN = ["choosing", "contributing", "how_much_noise", "migration", "quadratic"]


@pytest.mark.parametrize("page", PLAIN)
def test_code_runs(page):
    run(page)  # the pages' own assertions are in it


def test_every_page_with_code_is_run_here():
    pages = {page.stem for page in DOCS.rglob("*.md") if code_blocks.python_blocks(page)}
    here = pathlib.Path(__file__).read_text(encoding="utf-8")
    assert pages == {*PLAIN, *re.findall(r'run\(\s*"(\w+)"', here)}


def test_results(capsys):
    folder = DOCS / "records" / "tables" / "small"
    names = run("results", (('"docs/records/tables/small"', repr(str(folder))),))
    assert [len(names[name]) for name in ("lb", "sb", "full")] == [5, 5, 5]
    clipped = ("clipped_lb", "clipped_full", "clipped_sb")
    assert [len(names[name]) for name in clipped] == [5, 5, 5]
    assert capsys.readouterr().out.splitlines() == [
        "+6.4, p = 2e-05",
        "+0.3, p = 0.5",
        "+1.8, p = 8e-04",
        "+1.0, p = 1e-02",
        "+1.4, p = 2e-03",
    ]


def test_results_of_other_settings(capsys):
    run("results_other", (('"docs/records"', repr(str(DOCS / "records"))),))
    assert capsys.readouterr().out.splitlines() == [
        "+2.9, p = 0.00079",
        "+2.6, p = 0.0014",
        "+1.5, p = 0.0052",
        "+1.2, p = 0.023",
        "+0.2, p = 0.28",
        "+0.3, p = 0.32",
        "+1.0, p = 0.0027",
        "+0.5, p = 0.021",
        "+1.3, p = 0.017",
        "+0.8, p = 0.016",
        "-0.1, p = 0.68",
        "+0.2, p = 0.15",
        "+0.2, p = 0.22",
        "-0.1, p = 0.64",
    ]


def test_results_of_table_2(capsys):
    folder = DOCS / "records" / "tables" / "long" / "fashion_mnist-lenet"
    path = '"docs/records/tables/long/fashion_mnist-lenet"'
    names = run("results_table2", ((path, repr(str(folder))),))
    assert len(names["lb"]) == len(names["found"]) == 3
    assert capsys.readouterr().out.splitlines() == [
        "+0.74 ± 0.21, p = 0.008",
        "+0.19 ± 0.07, p = 0.1",
        "+0.07 ± 0.17, p = 0.3",
    ]


@pytest.mark.slow
def test_gpu(images):
    images(200)
    devices = ("MirroredStrategy()", 'MirroredStrategy(["CPU:0", "CPU:1"])')
    names = run("gpu", (devices, ("batch_size=2000, epochs=2", "batch_size=200")))
    assert names["strategy"].num_replicas_in_sync == 2
    assert names["model"].num_microbatches == names["fits"].num_microbatches > 1


COMMAND = re.compile(r"\bnoisylb ([a-z-]+)((?:\\\n|[^`\n#])*)")


def test_the_command_line_has_the_options_that_pages_name():
    commands = typer.main.get_command(app).commands
    options = {
        name: {flag for parameter in command.params for flag in parameter.opts}
        for name, command in commands.items()
    }
    seen = []
    for page in (code_blocks.ROOT / "README.md", *DOCS.glob("*.md")):
        for name, rest in COMMAND.findall(page.read_text(encoding="utf-8")):
            if named := re.findall(r"--[a-z0-9-]+", rest):
                assert set(named) <= options[name], (page.name, name, rest)
                seen += named
    assert len(seen) > 20


def test_index():
    names = run("index")
    assert names["model"].optimizer.noise_steps == 10  # a half of 20 updates


def test_how_it_works_standardises_the_noise():
    z = run("how_it_works")["standard"]
    assert z.size == 1050
    assert abs(z.mean()) < 5 / z.size**0.5
    error = np.sqrt(2 / z.size)
    assert abs(z.var() - 1) < 5 * error
    assert abs(1.5**2 * z.var() - 1) > 5 * error  # a noise half as large again is seen


def test_reproducing_has_noise_in_the_first_quarter():
    optimizer = run("reproducing")["model"].optimizer
    assert optimizer.noise_steps == 2
    assert int(optimizer.iterations) == 8


def test_limits_prints_what_it_says():
    refused = run("limits")["refused"]
    printed = (DOCS / "limits.md").read_text(encoding="utf-8").split("It prints")[1]
    assert len(refused) == 2
    for message in refused:
        assert message in " ".join(printed.split())


@pytest.mark.slow
def test_tuning_searches(images):
    images(1280)  # 1024 to train on, whole batches of every size
    names = run(
        "tuning",
        (
            ("max_trials=20", "max_trials=1"),
            ("seeds=(0, 1, 2)", "seeds=(0, 1)"),
            ("epochs=100", "epochs=1"),
            ("epochs=10,", "epochs=1,"),
        ),
    )
    (trial,) = names["results"](names["tuner"])
    assert trial.score == pytest.approx(np.mean(list(trial.seed_scores.values())))
    assert set(trial.seed_scores) == {0, 1}
    updates = np.ceil(1024 / trial.values["large_batch_size"])
    assert int(names["model"].optimizer.iterations) == updates


@pytest.mark.slow
def test_your_own_problem():
    names = run("your_problem", (("updates=200", "updates=10"), ("epochs=5", "epochs=1")))
    assert [row["steps"] for row in names["rows"].values()] == [94, 6, 6]
    advice = names["advice"]
    assert advice.updates == (1, 10)
    assert advice.early.lower < advice.early.value < advice.early.upper


@pytest.mark.slow
def test_diagnostics_prints_norms_variances_and_a_critical_batch_size(images, capsys):
    images(320)
    found = run("diagnostics", (("1024", "128"), ("64", "16"), ("draws=20", "draws=3")))["found"]
    shown = capsys.readouterr().out
    assert "conv1/kernel" in shown and "LB + diagonal" in shown
    assert 0 < found.lower < found.value < found.upper


@pytest.fixture
def public_api():
    spec = importlib.util.spec_from_file_location("public_api", DOCS / "hooks" / "public_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_symbol_has_an_entry(public_api):
    pages = [page.read_text(encoding="utf-8") for page in API]
    assert len(public_api.public_symbols()) > 60
    assert public_api.missing(pages) == []


@pytest.mark.parametrize(
    "name", ["report", "sqrt_scaling", "gradients.RULES", "models.names", "tuning.results"]
)
def test_a_missing_symbol_is_found(public_api, name):
    pages = [page.read_text(encoding="utf-8") for page in API]
    entry = f"\n::: keras_noisylb.{name}\n"
    without = [page.replace(entry, "\n") for page in pages]
    assert without != pages
    assert f"keras_noisylb.{name}" in public_api.missing(without)
