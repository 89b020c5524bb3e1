"""The cells of Tables 2 and 3 as data: the paper's numbers, and the recipe that repeats each.

What the paper states is in its sections 5, A.7 and A.8 and in the captions. What it does not state
was chosen, by the public code of the works that it builds on where there is any:

- bigBatch: github.com/eladhoffer/bigBatch, the code of Hoffer et al. 2017, ghost batch norm.
- Weight-Decay: github.com/gd-zhang/Weight-Decay, a co-author's code with the same VGG16.

Of the diagonal Fisher of a convolution the paper prints one formula, A.5's, and calls it Algorithm
1's; they are not the same. The recipes use A.5's with λ = 1: of the readings that were tried on
CIFAR-10 (docs/results_first.md) it was the one that could be trained at λ = 1 without wrecking the
fit, and had the highest accuracy on held-out images. None closed the gap there.
"""

from noisylb.protocol.recipe import Recipe, Source

# Validation accuracy in percent, mean of 3 seeds. LB + full Fisher: caption of Table 2.
COLUMNS = ("sb", "lb", "lb-trace", "lb-diagonal", "batch-change", "multiplicative", "lb-kfac")
PUBLISHED = {
    row: {name: value for name, value in zip(COLUMNS, values, strict=False) if value is not None}
    for row, values in {
        "mnist-mlp": (98.10, 97.95, 98.08, 98.10),
        "mnist-lenet": (99.10, 98.88, 99.02, 99.11),
        "fashion_mnist-lenet": (91.15, 88.89, 90.29, 90.79),
        "cifar10-alexnet": (87.80, 86.42, None, 87.61),
        "cifar100-alexnet": (59.21, 56.79, None, 59.10),
        "cifar10-vgg16": (93.25, 91.81, 92.91, 93.19, 93.18, 90.98, 93.06),
        "cifar100-vgg16": (72.83, 69.45, 71.35, 72.11, 72.44, 68.77, 71.86),
        "cifar10-resnet44": (93.42, 91.93, 92.33, 92.88, 93.02, 91.28, 92.81),
        "cifar100-resnet44x2": (75.55, 73.13, 73.77, 74.26, 75.16, 71.98, 73.84),
    }.items()
}
PUBLISHED["cifar10-resnet44"]["lb-full-split"] = 93.22

OURS = ("lb-diagonal-split", "lb-full-split")
TABLES = {  # number of the table to its rows and regimes; LB is what the last column compares with
    "2": (tuple(PUBLISHED), (*COLUMNS[:4], *OURS)),
    "3": (tuple(PUBLISHED)[5:], (*COLUMNS, *OURS)),
}

# Learning rate and weight decay of SB by row, and where they are from.
HE = "He et al. 2016, section 4.2: rate 0.1, momentum 0.9, weight decay 1e-4, batch 128"
F1 = "bigBatch, models/mnist_f1.py (batch 256)"
CAFFE = "Caffe's examples/mnist/lenet_solver.prototxt (batch 64)"
SHALLOW = "bigBatch, models/cifar_shallow.py (batch 256)"
SMALL = {
    "mnist-mlp": (0.1, 1e-4, F1),
    "mnist-lenet": (0.01, 5e-4, CAFFE),
    "fashion_mnist-lenet": (0.01, 5e-4, f"{CAFFE}, as for MNIST"),
    "cifar10-alexnet": (0.01, 5e-4, SHALLOW),
    "cifar100-alexnet": (0.01, 5e-4, SHALLOW),
    "cifar10-vgg16": (0.1, 1e-3, "Weight-Decay, configs/cifar10/vgg16/sgd, with augmentation"),
    "cifar100-vgg16": (0.03, 3e-3, "Weight-Decay, configs/cifar100/vgg16/sgd, with augmentation"),
    "cifar10-resnet44": (0.1, 1e-4, HE),
    "cifar100-resnet44x2": (0.1, 1e-4, f"{HE}, for CIFAR-10"),
}
LARGE = {"vgg16": (1.6, 1.6), "resnet44": (3.2, 1.6), "resnet44x2": (3.2, 1.6)}  # LB, LB + diagonal


def large_rate(row, model, regime):
    """The peak learning rate of a regime with large batches.

    Returns:
        Tuple of the rate, whether the paper states it, and where it is from.
    """
    if model not in LARGE:
        rate = round(SMALL[row][0] * 32**0.5, 4)
        return rate, False, "SB's times sqrt(4096 / 128), the rule of Hoffer et al. 2017"
    plain, noisy = LARGE[model]
    if regime in {"lb", "lb-diagonal"}:
        return (plain if regime == "lb" else noisy), True, "A.7"
    if regime in {"batch-change", "multiplicative"}:
        return plain, False, "that of LB"
    return noisy, False, "that of LB + diagonal Fisher, whose variance this noise has"


def recipe(row, regime):
    """The recipe of one cell.

    Args:
        row: one of `PUBLISHED`.
        regime: name of a regime.

    Returns:
        A `Recipe`.
    """
    dataset, model = row.split("-")
    fields, sources = {}, []

    def say(name, stated, where):
        sources.append(Source(name, stated, where))

    def put(name, value, *source):
        fields[name] = value
        say(name, *source)

    cifar = dataset.startswith("cifar")
    put("model", model, True, "Tables 2 and 3; its layers by the model's docstring")
    put("dataset", dataset, True, "Tables 2 and 3; the test set stands for their validation set")
    crop = "pad 4, crop and flip: Hoffer et al. 2017, preprocess.py of bigBatch"
    put("augment", cifar, False, crop if cifar else "none for digits and clothes")
    put("small_batch_size", 128, True, "section 3")
    put("large_batch_size", 4096, True, "section 3")
    put("ghost_batch_size", 128, False, "the small batch size, as in Hoffer et al. 2017")
    say("optimizer", True, "Algorithm 1")
    put("epochs", 200, False, "inferred: the rate decays last at 150, noise ends at a quarter")
    say("seeds", True, "their number: caption of Table 2")
    small, decay, source = SMALL[row]
    put("momentum", 0.9, False, source)
    put("weight_decay", decay, False, source)
    if regime == "sb":
        put("learning_rate", small, False, source)
        put("warmup_epochs", 0, False, "the paper speaks of LB and LB + diagonal Fisher only")
    else:
        put("learning_rate", *large_rate(row, model, regime))
        warm = regime in {"lb", "lb-diagonal"}
        if regime == "batch-change":
            put("warmup_epochs", 0, False, "none: the small batches begin")
        else:
            put("warmup_epochs", 10, warm, "A.7" if warm else "as for LB, A.7")
    named = regime in {"lb", "lb-diagonal"}
    say("decay_epochs", named, "A.7" if named else "as for LB, A.7")
    say("decay_factor", named, "A.7" if named else "as for LB, A.7")
    if regime == "batch-change":
        put("small_learning_rate", small, False, f"that of SB: {source}")
        put("small_epochs", 50, True, "A.8")
    elif regime not in {"sb", "lb"}:
        put("noise_epochs", 50, True, "A.7: a quarter of the training")
        if regime == "multiplicative":
            put("sigma", 0.1, False, "σ is not stated; a tenth of each coordinate")
        else:
            put("multiplier", 1.0, True, "Eq. 5 and 6")
    if regime == "lb-kfac":
        put("damping", 0.01, False, "the default of `noisylb compare`")
    if regime in {"lb-diagonal", "lb-trace"}:
        put("estimator", "per_example", True, "Algorithm 1")
        put("conv", "uncorrelated", True, "the formula of A.5; see docs/results_first.md")
    if regime in OURS:
        put("estimator", "split", False, "ours: the difference of the two halves of the batch")
    return Recipe(row=row, regime=regime, **fields, sources=tuple(sources))


RECIPES = {
    cell.name: cell
    for cell in (
        recipe(row, regime)
        for row in PUBLISHED
        for regime in TABLES["3" if row in TABLES["3"][0] else "2"][1]
    )
}
