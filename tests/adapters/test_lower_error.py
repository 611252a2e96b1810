"""What adapters are for: on a source model that was really trained, adapting lowers the error."""

import pytest

from driftline.adapters import EATA, ETA, ROID, SAR, BatchNormAdapter, DeYO, RDumb, Source
from driftline.adapters.augmentation import Augmentation
from tests.adapters.trained import digits, error, source_model

ADAPTERS = {
    "ETA": lambda model: ETA(model, lr=0.01, redundancy=0.8),
    "EATA": lambda model: EATA(model, digits()[0], lr=0.01, redundancy=0.8),
    "RDumb": lambda model: RDumb(model, lr=0.01, redundancy=0.8),
    "SAR": lambda model: SAR(model, lr=0.01),
    "DeYO": lambda model: DeYO(model, lr=0.01),
    # Digits have no mirror images, and at 8 x 8 pixels a shift by one is large.
    "ROID": lambda model: ROID(model, lr=0.01, augment=Augmentation(flip=0.0, translate=0.0)),
}


def test_statistics_of_the_batch_mend_most_of_the_shift():
    model = source_model()
    assert error(BatchNormAdapter(model)) < 0.2 < error(Source(model))


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapting_lowers_the_error_below_that_of_batch_statistics(name):
    model = source_model()
    # About a fifth lower; a tenth leaves room for other kernels and threads.
    assert error(ADAPTERS[name](model)) < 0.9 * error(BatchNormAdapter(model))
