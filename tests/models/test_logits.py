"""Which tensor of an output a model is judged by."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from batchnorm.models.outputs import first_output, logits

LOSS, LOGITS, FEATURES = torch.tensor(0.5), torch.zeros(4, 3), torch.ones(4, 8)
Named = namedtuple("Named", ("features", "logits"))


@dataclass
class Held:
    features: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOSS, LOGITS),
        [LOGITS, FEATURES],
        (torch.arange(4), LOGITS),
        {"loss": LOSS, "logits": LOGITS},
        {"features": FEATURES, "logits": LOGITS},
        Named(FEATURES, LOGITS),
        Held(FEATURES, LOGITS),
    ],
)
def test_the_logits_or_the_first_with_samples(output):
    assert first_output(output) is LOGITS


def test_a_loss_is_taken_where_there_is_nothing_else():
    assert first_output((LOSS,)) is LOSS
    assert first_output((torch.arange(4), "words", None)) is None


def test_the_output_itself_where_nothing_goes_by_the_name():
    assert logits({"out": LOGITS})["out"] is LOGITS
    assert logits(LOGITS) is LOGITS


def test_what_is_not_dense_is_not_what_a_model_is_judged_by():
    dense = torch.ones(2, 3)
    assert first_output((dense.to_sparse(), dense)) is dense
    assert first_output(torch.nested.nested_tensor([dense], layout=torch.jagged)) is None
