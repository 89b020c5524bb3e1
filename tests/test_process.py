"""The processes of the queue."""

from keras_noisylb.experiments.queue.process import ask


def test_a_module_in_the_current_directory_is_not_imported(tmp_path, monkeypatch):
    """Its name is that of a module of Python that TensorFlow imports."""
    (tmp_path / "queue.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    ask("data", "{}")
    assert not (tmp_path / "ran").exists()
