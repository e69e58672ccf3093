"""One small pair of volumes with numbers from other programs, so that these need not be installed.

The numbers were printed on 2026-11-23 by python-elf 0.9.2 and waterz 0.10.1, in an environment of their own::

    pip install python-elf waterz
    python -c "
    from worked_example import LABELS, SEGMENTATION
    from elf import evaluation as elf
    from elf.evaluation.matching import mean_segmentation_accuracy
    import waterz
    print(elf.variation_of_information(SEGMENTATION, LABELS))
    print(elf.variation_of_information(SEGMENTATION, LABELS, use_log2=False))
    print(elf.rand_index(SEGMENTATION, LABELS))
    print(elf.cremi_score(SEGMENTATION, LABELS))
    print(elf.matching(SEGMENTATION, LABELS))
    print(mean_segmentation_accuracy(SEGMENTATION, LABELS, return_accuracies=True))
    print(elf.symmetric_best_dice_score(SEGMENTATION, LABELS))
    print(waterz.evaluate(SEGMENTATION, LABELS))"
"""

from __future__ import annotations

import numpy as np

LABELS = np.array(
    [[[1, 1, 1, 2, 2, 2, 2], [1, 1, 3, 3, 2, 2, 2], [4, 4, 3, 3, 5, 5, 5], [4, 4, 4, 5, 5, 5, 6]]], np.uint64
)
SEGMENTATION = np.array(
    [[[7, 7, 7, 7, 2, 2, 2], [7, 7, 3, 3, 2, 2, 2], [7, 7, 3, 3, 8, 5, 5], [4, 4, 3, 8, 5, 5, 5]]], np.uint64
)

ELF_VOI_BITS = (0.6164687474585728, 0.6289157312298863)
ELF_VOI_NATS = (0.4273035742042308, 0.4359311659117917)
ELF_RAND_ERROR, ELF_RAND_INDEX = 0.3032258064516128, 0.8801020408163265
ELF_CREMI = (0.6164687474585728, 0.6289157312298863, 0.3032258064516128, 0.6145182771021781)
ELF_MATCHING = {"precision": 2 / 3, "recall": 2 / 3, "segmentation_accuracy": 0.5, "f1": 2 / 3}
ELF_ACCURACIES = (0.5, 0.5, 1 / 3, 0.2, 0.2, 0.2, 1 / 11, 1 / 11, 0, 0)  # at IoU 0.5, 0.55 ... 0.95
ELF_MEAN_ACCURACY = 0.21151515151515152
ELF_SYMMETRIC_BEST_DICE = 0.7022051950010879  # it adds 1e-7 to every denominator
WATERZ = {
    "voi_split": 0.6164687474585726,
    "voi_merge": 0.6289157312298861,
    "rand_split": 0.7105263157894737,
    "rand_merge": 0.6835443037974683,
}
