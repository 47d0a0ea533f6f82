"""Training inputs beside evaluation inputs, without a model."""

from batchnorm.diagnosis.experiments.differing import difference
from batchnorm.diagnosis.experiments.sample import Sample


def compared(x, y):
    """What differs between them, as `diagnose` collects it."""
    samples = Sample(), Sample()
    for sample, inputs in zip(samples, (x, y), strict=True):
        for part in inputs.split(50):
            sample.add(part, None)
    return difference(*samples)
