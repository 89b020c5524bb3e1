"""Make the bundled data set: 10,000 + 5,000 images of Fashion-MNIST, balanced by class.

    python make_fashion_mnist_small.py --source DIRECTORY_OF_PREPARED_TFDS_COPIES --output .

Training images are drawn from Fashion-MNIST's training split, and test images from its test split.
Shards are small enough for version control. The seed determines the examples and their order, but
not the bytes of the files, because the serialisation does not fix the order of a record's fields.
"""

import argparse
import pathlib
import shutil

import numpy as np
import tensorflow_datasets as tfds

SIZES = {"train": 10_000, "test": 5_000}
EXAMPLES_PER_SHARD = 2_500


def stratified(labels, size, rng):
    """Shuffled indices of `size` examples, with the same number from each of the ten classes."""
    chosen = [rng.choice(np.flatnonzero(labels == k), size // 10, replace=False) for k in range(10)]
    return rng.permutation(np.concatenate(chosen))


def main():
    """Write the data set to the output directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="data_dir that holds fashion_mnist")
    parser.add_argument("--output", required=True, help="where fashion_mnist_small is written")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    builder = tfds.builder("fashion_mnist", data_dir=args.source)
    directory = pathlib.Path(args.output) / "fashion_mnist_small"
    shutil.rmtree(directory / "1.0.0", ignore_errors=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="fashion_mnist_small",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(directory / "1.0.0"),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=builder.info.features,
        description="10,000 training and 5,000 test images of Fashion-MNIST, balanced by class.",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        license="MIT",
    )
    (directory / "1.0.0").mkdir(parents=True)
    writer = tfds.core.SequentialWriter(info, EXAMPLES_PER_SHARD)
    writer.initialize_splits(list(SIZES))
    rng = np.random.default_rng(args.seed)
    for split, size in SIZES.items():
        data = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        order = stratified(data["label"], size, rng)
        writer.add_examples({
            split: [{"image": data["image"][i], "label": int(data["label"][i])} for i in order]
        })
    writer.close_all()


if __name__ == "__main__":
    main()
