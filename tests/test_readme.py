"""README's Python runs as printed, at a reduced number of epochs; imports do as they say."""

import os
import subprocess
import sys

import code_blocks
import pytest

import keras_noisylb


def test_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = code_blocks.run(code_blocks.ROOT / "README.md", [("epochs=20", "epochs=1")])
    assert names["model"].optimizer.noise_steps == 5  # a half of 10 updates
    assert len(names["fisher"]) == len(names["model"].trainable_variables)


def test_everything_public_exists():
    for name in keras_noisylb.__all__:
        assert getattr(keras_noisylb, name) is not None


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_another_backend_is_refused_in_one_sentence(backend):
    done = subprocess.run(
        [sys.executable, "-c", "import keras_noisylb"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: keras_noisylb needs Keras' TensorFlow backend")
    assert repr(backend) in last
