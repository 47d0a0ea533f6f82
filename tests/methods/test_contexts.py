"""Contexts over a model, fused activations, centred weights, the decay of the affine map, and the way back to torch."""

import contextlib
import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormError
from batchnorm.layers import METHODS, Mixture, OnlineNorm, Policy, Renorm, SecondMoment
from batchnorm.models import affine_penalty, center_weights, mode, parameter_groups, union
from tests.methods.plain import affine, batch_norm, close, data, randn, run, same
from tests.sampling import slow_but
from tests.subjects import Subject


def net():
    torch.manual_seed(0)
    layers = [nn.Conv1d(2, 3, 1), BatchNorm1d(3), nn.Dropout(0.0), nn.Conv1d(3, 3, 2, stride=2), BatchNorm1d(3)]
    return nn.Sequential(*layers).double()


ATTRIBUTES = (
    "training",
    "recipe",
    "paused",
    "frozen",
    "accumulating",
    "active_bank",
    "bank_names",
    "momentum",
    "_given",
)


def snapshot(model):
    """Everything a context may touch: buffers and what each layer knows about itself."""
    held = {name: [getattr(m, word, None) for word in ATTRIBUTES] for name, m in model.named_modules()}
    return {name: b.clone() for name, b in model.named_buffers()}, held


def restored(model, before):
    buffers, attributes = snapshot(model)
    if buffers.keys() != before[0].keys() or attributes != before[1]:
        return False
    return all(torch.equal(value, before[0][name]) for name, value in buffers.items())


CONTEXTS = {
    "masked": lambda m: batchnorm.masked(m, torch.ones(4, 6, dtype=torch.bool)),
    "bank": lambda m: batchnorm.bank(m, "first"),
    "accumulate": batchnorm.accumulate,
    "accumulate-renorm": lambda m: batchnorm.accumulate(m, renorm=True),
    "mode": lambda m: mode(m, train=False),
    "pause": batchnorm.pause,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_an_exception_leaves_everything_as_it_was(name):
    model = net()
    with batchnorm.bank(model, "first"):
        model(data(1, 4, 2, 6))
    before = snapshot(model)

    def failing():
        if name in ("accumulate", "accumulate-renorm", "pause", "mode"):
            model(data(2, 4, 2, 6))
        raise RuntimeError("from the caller")

    with pytest.raises(RuntimeError, match="from the caller"), CONTEXTS[name](model):
        failing()
    assert restored(model, before)


@pytest.mark.parametrize("name", CONTEXTS)
def test_an_empty_context_changes_nothing(name):
    model = net()
    with batchnorm.bank(model, "first"):
        pass
    before = snapshot(model)
    with CONTEXTS[name](model) as inner:
        assert inner is model
    assert restored(model, before)


# masked ------------------------------------------------------------------------------------------------------


def test_masked_reaches_every_layer_at_its_own_size():
    model, x = net(), data(1, 4, 2, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 4:], mask[2, 2:] = False, False
    with batchnorm.masked(model, mask):
        y = model(x)
    first, second = model[1], model[4]
    values = model[0](x).movedim(1, -1)[mask]
    assert close(first.running_mean, 0.1 * values.mean(0).detach())
    assert torch.equal(y.movedim(1, -1)[~mask[:, ::2]], torch.zeros_like(y.movedim(1, -1)[~mask[:, ::2]]))
    assert int(second.num_batches_tracked) == 1


@pytest.mark.parametrize("kind", ["mask", "lengths", "weights"])
def test_masked_context_is_the_forward_argument(kind):
    given = {
        "mask": torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [False] * 6, [True] * 6]),
        "lengths": torch.tensor([6, 3, 0, 2]),
        "weights": torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64),
    }[kind]
    argued, held = affine(BatchNorm1d(3, dtype=torch.float64)), affine(BatchNorm1d(3, dtype=torch.float64))
    x, g = data(1, 4, 3, 6), randn(4, 3, 6)
    expected = run(argued, x, g, **{kind: given})
    with batchnorm.masked(held, **{kind: given}):
        got = run(held, x, g)
    assert same(got, expected, 0)
    assert torch.equal(argued.running_var, held.running_var)


def test_lengths_are_the_mask_of_first_positions():
    x, g, lengths = data(1, 4, 3, 6), randn(4, 3, 6), torch.tensor([6, 3, 0, 2])
    one, two = BatchNorm1d(3, dtype=torch.float64), BatchNorm1d(3, dtype=torch.float64)
    assert same(run(one, x, g, lengths=lengths), run(two, x, g, mask=torch.arange(6) < lengths[:, None]), 0)


def test_the_inner_mask_and_the_calls_own_go_first():
    layer, x = BatchNorm1d(3, momentum=1.0, dtype=torch.float64), data(1, 4, 3)
    outer, inner = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, True])
    with batchnorm.masked(layer, outer):
        with batchnorm.masked(layer, inner):
            layer(x)
            assert close(layer.running_mean, x[inner].mean(0))
            layer(x, mask=outer)
            assert close(layer.running_mean, x[outer].mean(0))
        layer(x)
        assert close(layer.running_mean, x[outer].mean(0))
    layer(x)
    assert close(layer.running_mean, x.mean(0))


@pytest.mark.parametrize("reentrant", [True, False])
def test_backward_inside_the_context_recomputes_with_the_mask(reentrant):
    from torch.utils.checkpoint import checkpoint

    x, g, mask = data(1, 4, 3, 6), randn(4, 3, 6), torch.rand(4, 6) > 0.3
    plain, saved = BatchNorm1d(3, dtype=torch.float64), BatchNorm1d(3, dtype=torch.float64)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    plain(a, mask=mask).backward(g)
    with batchnorm.masked(saved, mask):
        checkpoint(saved, b, use_reentrant=reentrant).backward(g)
    assert close(a.grad, b.grad)
    assert torch.equal(plain.running_mean, saved.running_mean)


def test_frequency_weights_are_repetitions_and_reliabilities_are_not():
    x, weights = data(1, 5, 3), torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0], dtype=torch.float64)
    repeated = x[[0, 1, 1, 3, 3, 3, 4]]
    for kind, correction in (("frequency", 1.0), ("reliability", float(weights.square().sum() / weights.sum()))):
        layer = BatchNorm1d(3, momentum=1.0, policy=Policy(weights=kind), dtype=torch.float64)
        layer(x, weights=weights)
        assert close(layer.running_mean, repeated.mean(0))
        assert close(layer.running_var, repeated.var(0, correction=0) * 7 / (7 - correction))


# accumulate --------------------------------------------------------------------------------------------------


def test_accumulate_is_one_update_of_the_big_batch_when_it_ends():
    model, whole, x = BatchNorm1d(3, dtype=torch.float64), BatchNorm1d(3, dtype=torch.float64), data(2, 11, 3)
    with batchnorm.accumulate(model):
        for micro in x.split(4):
            assert close(model(micro), batch_norm(micro))
            assert torch.equal(model.running_mean, torch.zeros(3, dtype=torch.float64))
    whole(x)
    assert close(model.running_mean, whole.running_mean)
    assert close(model.running_var, whole.running_var)
    assert int(model.num_batches_tracked) == 1
    assert list(model.state_dict()) == list(whole.state_dict())


def test_accumulate_with_renorm_corrects_each_micro_batch_by_the_unmoved_statistics():
    model = BatchNorm1d(3, dtype=torch.float64)
    model(data(1, 8, 3))
    reference = BatchNorm1d(3, method="renorm", dtype=torch.float64)
    reference.load_state_dict(model.state_dict())
    x = data(2, 9, 3)
    with batchnorm.accumulate(model, renorm=True), batchnorm.pause(reference):
        for micro in x.split(3):
            assert close(model(micro), reference(micro))
    assert type(model.recipe.coupling) is not Renorm
    assert int(model.num_batches_tracked) == 2


def test_accumulate_skips_a_batch_that_is_not_finite_and_raises_where_the_policy_says_so():
    x = data(2, 8, 3)
    model, whole = BatchNorm1d(3, dtype=torch.float64), BatchNorm1d(3, dtype=torch.float64)
    with batchnorm.accumulate(model):
        model(x[:4])
        model(torch.full_like(x, torch.nan))
        model(x[4:])
    whole(x)
    assert close(model.running_var, whole.running_var)
    assert int(model.num_batches_skipped) == 1
    strict = BatchNorm1d(3, policy=Policy(nonfinite="raise"))
    with pytest.raises(BatchNormError, match="batch statistics must be finite"), batchnorm.accumulate(strict):
        strict(torch.full((4, 3), torch.inf))
    open_ = BatchNorm1d(3, policy=Policy(nonfinite="propagate"))
    with batchnorm.accumulate(open_):
        open_(torch.full((4, 3), torch.nan))
    assert open_.running_mean.isnan().all()


def test_a_bank_around_accumulate_gets_its_update():
    layer, x = BatchNorm1d(3, dtype=torch.float64), data(2, 8, 3)
    with batchnorm.bank(layer, "target"), batchnorm.accumulate(layer):
        layer(x[:4])
        layer(x[4:])
    assert close(layer.bank_target_running_mean, 0.1 * x.mean(0))
    assert torch.equal(layer.running_mean, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("method", ["mabn", "power", "unified"])
def test_paused_forward_stays_paused_in_its_backward(method):
    subject = Subject(method, 3, dtype=torch.float64)
    before = {name: b.clone() for name, b in subject.named_buffers()}
    with batchnorm.pause(subject):
        y = subject(data(1, 4, 3, 2, 2).requires_grad_())
    y.sum().backward()
    assert all(torch.equal(b, before[name]) for name, b in subject.named_buffers())


# Errors ------------------------------------------------------------------------------------------------------


def enter(context):
    with context:
        pass


def sentences():
    ours, stock = BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3))
    bare = BatchNorm1d(3, track_running_stats=False)
    x = torch.randn(4, 3, 5)
    yes = torch.ones(4, 5, dtype=torch.bool)
    return {
        "masked, torch's layers": (lambda: enter(batchnorm.masked(stock, yes)), "0 is torch's: convert it first"),
        "masked, no layers": (lambda: enter(batchnorm.masked(nn.ReLU(), yes)), "there are none"),
        "masked, nothing": (
            lambda: enter(batchnorm.masked(ours)),
            "all were None",
        ),
        "masked, two": (
            lambda: enter(batchnorm.masked(ours, yes, lengths=torch.ones(4).long())),
            "mask and lengths$",
        ),
        "mask, type": (lambda: ours(x, mask=yes.float()), "mask must be a boolean tensor"),
        "mask, no tensor": (lambda: ours(x, mask=[True]), "mask must be a tensor; it was list"),
        "mask, shape": (lambda: ours(x, mask=yes[:, :4]), r"begins \(4, 5\)"),
        "lengths, type": (lambda: ours(x, lengths=torch.ones(4)), "lengths must be integers of shape"),
        "lengths, rank": (lambda: ours(x[..., 0], lengths=torch.ones(4).long()), r"for inputs \(N, C, L\)"),
        "mask, one value": (lambda: ours(x[:1], mask=torch.arange(5)[None] == 0), "at least 2 unmasked values"),
        "masked extent": (lambda: BatchNorm1d(3, method="masked")(x), "mask must be given"),
        "weighted extent": (lambda: BatchNorm1d(3, method="weighted")(x, mask=yes), "weights must be given"),
        "bank, name": (lambda: enter(batchnorm.bank(ours, "a b")), "letters, digits and underscores; it was 'a b'"),
        "bank, no name": (lambda: enter(batchnorm.bank(ours, 3)), "it was 3"),
        "bank, bare": (lambda: enter(batchnorm.bank(bare, "a")), r"track statistics in every layer"),
        "accumulate, nested": (lambda: nested(batchnorm.accumulate, batchnorm.accumulate, ours), "must not be nested"),
        "bank in accumulate": (
            lambda: nested(batchnorm.accumulate, lambda m: batchnorm.bank(m, "a"), ours),
            "bank must be entered before accumulate",
        ),
        "accumulate, online": (
            lambda: enter(batchnorm.accumulate(BatchNorm1d(3, method="online"))),
            "update='pooled'",
        ),
        "accumulate, cbn": (
            lambda: enter(batchnorm.accumulate(Subject("cbn", 3))),
            "cross-iteration needs",
        ),
        "renorm, no mean": (
            lambda: enter(batchnorm.accumulate(BatchNorm1d(3, coupling=SecondMoment()), renorm=True)),
            "renorm must be False for layer",
        ),
        "mode, word": (lambda: enter(mode(ours, "eval")), "train must be True or False; it was 'eval'"),
        "union, one": (lambda: union(ours, x), "two or more; there were 1"),
        "union, shapes": (lambda: union(ours, x, x[..., :3]), "agree but for the first axis"),
        "union, kinds": (lambda: union(ours, x, 3), "must be tensors"),
        "fuse, stock": (lambda: batchnorm.fuse_activations(stock), "convert it first"),
        "decay": (lambda: parameter_groups(ours, -1.0), "weight_decay must be 0 or more; it was -1.0"),
        "penalty": (lambda: affine_penalty(nn.ReLU()), "must contain a batch norm layer; ReLU has none"),
        "centre": (lambda: center_weights(BatchNorm1d(3, method="mabn")), "none was found"),
        "to_stock, bank": (lambda: batchnorm.to_stock(ours, bank="nowhere"), "no bank 'nowhere'; its banks are"),
        "to_stock, clamp": (lambda: batchnorm.to_stock(BatchNorm1d(3, method="online")), "an activation clamp"),
        "to_stock, scaling": (
            lambda: batchnorm.to_stock(
                BatchNorm1d(3, method="online", coupling=OnlineNorm(clamp=None, layer_scaling=True))
            ),
            "layer scaling",
        ),
        "to_stock, mixture": (lambda: batchnorm.to_stock(BatchNorm1d(3, inference=Mixture(weight=0.1))), "at hand"),
        "to_stock, axis": (lambda: batchnorm.to_stock(BatchNorm1d(3, channel_axis=-1)), "this one on axis -1"),
        "to_stock, rank": (lambda: batchnorm.to_stock(batchnorm.BatchNorm(3)), "torch has no class for BatchNorm"),
    }


def nested(outer, inner, model):
    with outer(model), inner(model):
        pass


@pytest.mark.parametrize("name", sentences())
def test_errors_say_what_is_legal_and_change_nothing(name):
    call, sentence = sentences()[name]
    with pytest.raises(BatchNormError, match=sentence):
        call()


# Activations, weights, the affine map ------------------------------------------------------------------------


FUSED = [(m, a) for m in METHODS if m not in ("cbn", "masked", "weighted") for a in (nn.ReLU(), nn.LeakyReLU(0.2))]
FUSED += [(m, a) for m in ("batchnorm", "mabn") for a in (nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU())]


@pytest.mark.parametrize(("method", "activation"), FUSED, ids=str)
def test_fused_activation_is_the_module_and_comes_back(method, activation):
    model = nn.Sequential(nn.Linear(3, 4), BatchNorm1d(4, method=method), activation).double()
    twin = copy.deepcopy(model)
    batchnorm.fuse_activations(model)
    assert type(model[2]) is nn.Identity
    for step in range(3):
        x = data(step, 6, 3)
        assert close(model(x), twin(x))
    assert close(model.eval()(x), twin.eval()(x))
    if method in ("online", "example-weighing"):
        with pytest.raises(BatchNormError, match="cannot be converted to a torch layer"):
            batchnorm.to_stock(model)
        assert type(model[2]) is nn.Identity
        return
    batchnorm.to_stock(model)
    assert not callable(model[1].momentum)
    assert [type(m) for m in model] == [nn.Linear, nn.BatchNorm1d, type(activation)]
    assert close(model(x), twin(x))


def test_residual_is_added_before_the_activation():
    layer, x, r = affine(BatchNorm1d(3, activation="relu", dtype=torch.float64)), data(1, 5, 3), randn(5, 3)
    assert close(layer(x, residual=r), (batch_norm(x) * layer.weight + layer.bias + r).relu())


def test_to_stock_takes_a_bank_with_its_own_affine():
    model, x = nn.Sequential(BatchNorm2d(3, dtype=torch.float64)), data(1, 4, 3, 2, 2)
    with batchnorm.bank(model, "target", own_affine=True):
        model(x)
        affine(model[0])
        with torch.no_grad():
            model[0].bank_target_weight.fill_(2.0)
        expected = model.eval()(x)
    stock = batchnorm.to_stock(model, bank="target")
    assert type(stock[0]) is nn.BatchNorm2d
    assert close(stock(x), expected)
    assert list(stock[0].state_dict()) == list(nn.BatchNorm2d(3).state_dict())


def test_parameter_groups_divide_every_parameter_once():
    model = net()
    with batchnorm.bank(model, "a", own_affine=True):
        pass
    groups = parameter_groups(model, 0.1, gamma=0.2, beta=0.3)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.2, 0.3]
    assert [len(group["params"]) for group in groups] == [4, 4, 4]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = model[1].weight.detach().clone()
    optimizer.step()
    assert close(model[1].weight.detach(), 0.8 * before)


def test_affine_penalty_pulls_gamma_to_one_and_beta_to_zero():
    model = net()
    for layer in (model[1], model[4]):
        affine(layer)
    affine_penalty(model).backward()
    for layer in (model[1], model[4]):
        assert close(layer.weight.grad, 2 * (layer.weight.detach() - 1))
        assert close(layer.bias.grad, 2 * layer.bias.detach())


def test_centred_weights_stay_centred_while_they_train():
    model = center_weights(batchnorm.convert(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), "mabn").double())
    assert center_weights(model)[0] is model[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (model(randn(2, 2, 5, 5, seed=step)) * randn(2, 3, 3, 3, seed=step + 9)).sum().backward()
        optimizer.step()
        assert model[0].weight.mean((1, 2, 3)).abs().max() < 1e-12
    assert list(model[0].parametrizations) == ["weight"]
    assert len(model[0].parametrizations["weight"]) == 1


def test_center_weights_leaves_layers_that_take_off_the_mean():
    model = center_weights(nn.Sequential(nn.Conv2d(2, 3, 3), BatchNorm2d(3)))
    assert not hasattr(model[0], "parametrizations")


def test_inplace_activation_is_there_however_the_batch_is_normalised():
    """Masked, frozen, corrected, converted: what is not the plain batch keeps its input and activates all the same."""
    x, mask = data(1, 6, 3), torch.tensor([True, True, False, True, False, True])

    def masked(layer):
        return layer(x, mask=mask)

    def corrected(layer):
        with batchnorm.accumulate(layer, renorm=True):
            return layer(x)

    ways = {
        "plain": lambda layer: layer(x),
        "masked": masked,
        "frozen": lambda layer: batchnorm.freeze(layer)(x),
        "inferring": lambda layer: layer.eval()(x),
        "corrected": corrected,
        "converted": lambda layer: batchnorm.convert(layer, "ghost", extent=batchnorm.layers.Ghost(2))(x),
        "one value": lambda layer: batchnorm.convert(layer, policy=Policy(too_few="population"))(x[:1]),
    }
    for name, way in ways.items():
        options = {"activation": "leaky_relu", "negative_slope": 0.2, "dtype": torch.float64}
        got, expected = (way(affine(BatchNorm1d(3, inplace=inplace, **options))) for inplace in (True, False))
        assert close(got, expected), name
        assert (got < 0).any()


def test_layer_scaling_counts_what_the_mask_leaves():
    options = {"method": "online", "coupling": OnlineNorm(clamp=None, layer_scaling=True), "dtype": torch.float64}
    x, mask = data(1, 4, 3, 5), torch.arange(5) < 3
    masked, compacted = affine(BatchNorm1d(3, **options)), affine(BatchNorm1d(3, **options))
    for training in (True, False):
        y = masked.train(training)(x, mask=mask.expand(4, 5))
        assert close(y[..., :3], compacted.train(training)(x[..., :3]))


def test_reset_within_a_bank_is_that_of_the_bank():
    """So that update_bn within a bank estimates the bank, and leaves the layer's own statistics alone."""
    layer, x = BatchNorm1d(3, dtype=torch.float64), data(1, 8, 3)
    layer(x)
    own = layer.running_mean.clone()
    with batchnorm.bank(layer, "target"):
        layer(data(5, 8, 3))
        torch.optim.swa_utils.update_bn([x[:4], x[4:]], layer)
    assert close(layer.bank_target_running_mean, x.mean(0))
    assert int(layer.bank_target_num_batches_tracked) == 2
    assert torch.equal(layer.running_mean, own)
    assert int(layer.num_batches_tracked) == 1


def test_banks_of_a_plain_state_load_into_a_method_with_a_memory():
    plain, mabn = BatchNorm1d(3), BatchNorm1d(3, method="mabn")
    with batchnorm.bank(plain, "target"):
        plain(torch.randn(6, 3))
    mabn.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(mabn.bank_target_running_var, plain.bank_target_running_var)
    assert mabn.bank_target_forward_window.shape == mabn.forward_window.shape


@contextlib.contextmanager
def frozen(model):
    batchnorm.freeze(model)
    yield
    batchnorm.unfreeze(model)


COMPILED = {
    "accumulate": batchnorm.accumulate,
    "accumulate with renorm": lambda m: batchnorm.accumulate(m, renorm=True),
    "bank": lambda m: batchnorm.bank(m, "a"),
    "bank with weight and bias": lambda m: batchnorm.bank(m, "a", own_affine=True),
    "masked": lambda m: batchnorm.masked(m, torch.tensor([True] * 4 + [False] * 2)),
    "weights": lambda m: batchnorm.masked(m, weights=torch.tensor([5.0, 1, 1, 1, 1, 0])),
    "pause": batchnorm.pause,
    "frozen": frozen,
    "mode": lambda m: batchnorm.models.mode(m, False),
}


@pytest.mark.parametrize("name", slow_but([*COMPILED], {"bank", "masked"}))
def test_contexts_hold_in_compiled_models(name):
    """Also where the model was compiled outside of them, and again after them."""
    torch.compiler.reset()
    eager = nn.Sequential(BatchNorm1d(3)).double()
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    found = []
    for call, model in ((eager, eager), (compiled, twin)):
        outputs = [call(data(0, 6, 3))]
        for step in (1, 3):
            with COMPILED[name](model):
                outputs += [call(data(step, 6, 3)), call(data(step + 1, 6, 3))]
            outputs.append(call(data(step + 5, 6, 3)))
        found.append(outputs)
    assert all(close(a, b) for a, b in zip(*found, strict=True))
    for key, value in eager.state_dict().items():
        assert close(twin.state_dict()[key].double(), value.double()), key


def test_a_compiled_model_takes_each_mask_in_turn():
    torch.compiler.reset()
    model = nn.Sequential(BatchNorm1d(3)).double()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = data(1, 6, 3)
    for keep in (None, [1, 1, 0, 1, 0, 1], None, [0, 1, 1, 1, 1, 1]):
        mask = None if keep is None else torch.tensor(keep) > 0
        found = []
        for call, layers in ((model, model), (compiled, twin)):
            with contextlib.nullcontext() if mask is None else batchnorm.masked(layers, mask):
                found.append(call(x))
        assert close(*found)
        assert mask is None or not found[1][~mask].any()


def test_a_compiled_layer_counts_the_batches_it_skips():
    torch.compiler.reset()
    layer = BatchNorm1d(3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for x in (torch.randn(6, 3), torch.full((6, 3), torch.nan), torch.full((6, 3), torch.inf)):
        compiled(x)
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (1, 2)
