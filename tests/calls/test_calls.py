"""Wrong calls of every public verb: one clear sentence each, and nothing is changed."""

import copy
import inspect
import re
import sys
import warnings

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import interop, models
from batchnorm.errors import ArgumentError, BatchNormError, UserCodeError
from tests.calls import good
from tests.calls.outcome import outcome
from tests.calls.verbs import VERBS
from tests.calls.wrong import Odd
from tests.sampling import every

PAIRS = [(verb, argument, label) for verb in VERBS for argument, values in verb.kinds.items() for label in values]


@pytest.fixture(autouse=True)
def _libraries(monkeypatch):
    for name, module in good.libraries().items():
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, module)
    with warnings.catch_warnings():
        # Of torch, about what is wrong.
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name.replace(" ", "_"))
def test_the_call_works_as_it_should_be(verb):
    verb.call(**{name: value() for name, value in verb.given.items()})


def _named(pair):
    verb, argument, label = pair
    return f"{verb.name}-{argument}-{label}".replace(" ", "_")


@pytest.mark.parametrize("pair", every(5, PAIRS), ids=map(_named, PAIRS))
def test_a_wrong_call_is_one_sentence_and_changes_nothing(pair):
    verb, argument, label = pair
    found = outcome(verb, argument, verb.kinds[argument][label])
    if f"{argument}: {label}" in verb.legal:
        assert found.error is None
        return
    assert isinstance(found.error, BatchNormError), repr(found.error)
    said = str(found.error)
    assert re.search(verb.says.get(argument, argument), said), said
    assert "\n" not in said
    assert len(said) <= 500
    assert found.changed == []


@pytest.mark.parametrize("make", [ZeroDivisionError, KeyError, OSError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("where", ["model", "loader", "metric", "forward_fn"])
def test_the_callers_own_error_stays_in_sight(make, where):
    own = make("of the caller's own")

    def raises(*_):
        raise own

    def loader():
        yield from good.batches()[:2]
        raise own

    wrong = {
        "model": {"model": Odd(raises)},
        "loader": {"loader": loader()},
        "metric": {"metric": raises},
        "forward_fn": {"forward_fn": raises},
    }[where]
    with pytest.raises(UserCodeError, match="of the caller's own") as caught:
        batchnorm.diagnose(**{"model": good.network(), "loader": good.batches(), "progress": False, **wrong})
    assert caught.value.__cause__ is own
    assert isinstance(caught.value, RuntimeError)
    assert f"batch {2 if where == 'loader' else 0}" in str(caught.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError("full"), KeyboardInterrupt()])
def test_what_is_no_mistake_of_the_call_is_raised_as_it_is(error):
    def raises(*_):
        raise error

    net = good.network()
    before = net[1].running_mean.clone()
    with pytest.raises(type(error)) as caught:
        batchnorm.recalibrate(net, good.batches(), forward_fn=raises, progress=False)
    assert caught.value is error
    assert torch.equal(net[1].running_mean, before)


def test_the_layer_and_the_batch_of_a_later_pass_are_named():
    loader = [good.x(), good.x(), good.drawn(8, 5, 6, 6)]
    for options in ({}, {"upstream": "batch"}, {"exact": True, "memory": 1}):
        with pytest.raises(
            UserCodeError, match=r"batch 2 \(a float32 tensor of shape \(8, 5, 6, 6\)\) failed in layer '0'"
        ):
            batchnorm.recalibrate(good.network(), loader, progress=False, **options)


def test_a_generator_is_not_read_where_another_argument_is_wrong():
    batches = iter(good.batches())
    with pytest.raises(BatchNormError, match="variance must be"):
        batchnorm.recalibrate(good.network(), batches, variance="nonesuch")
    assert len(list(batches)) == 3


def test_wrong_types_are_type_errors_and_wrong_values_value_errors():
    with pytest.raises(TypeError, match="num_features must be an integer"):
        batchnorm.BatchNorm2d("8")
    with pytest.raises(ValueError, match="momentum must be"):
        batchnorm.BatchNorm2d(8, momentum=2)
    with pytest.raises(ArgumentError, match="did you mean affine"):
        batchnorm.freeze(good.network(), afine=True)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, copy.deepcopy], ids=["DataParallel", "compiled", "copied"]
)
@pytest.mark.parametrize("verb", ["recalibrate", "diagnose"])
def test_wrapped_models_are_legal(wrap, verb):
    arguments = {"model": wrap(good.network()), "loader": good.batches(), "progress": False}
    getattr(batchnorm, verb)(**arguments)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, batchnorm.BatchNorm2d], ids=["torch", "batchnorm"])
@pytest.mark.parametrize(
    ("positional", "keywords", "said"),
    [
        (0, {}, r"forward\(\) missing 1 required positional argument: 'input'"),
        (1, {"masks": None}, r"forward\(\) got an unexpected keyword argument 'masks'"),
        (9, {}, r"forward\(\) takes .* positional arguments but 10 were given"),
    ],
)
def test_a_forward_that_does_not_fit_the_signature_is_pythons_error_as_in_torch(kind, positional, keywords, said):
    """Python refuses such a call before the layer is reached; wrapping it would cost every forward."""
    layer = kind(3)
    with pytest.raises(TypeError, match=said):
        layer(*[torch.randn(2, 3, 4, 4)] * positional, **keywords)
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("namespace", [batchnorm, models, interop], ids=lambda n: n.__name__)
def test_every_public_function_is_among_them(namespace):
    public = {n for n in namespace.__all__ if inspect.isroutine(getattr(namespace, n))}
    assert public - {verb.name.rsplit(".", 1)[-1] for verb in VERBS} == set()
