"""Which part was in train or eval, with or without gradients: what a watched run says of its modes."""

import copy
import json
import os
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.diagnosis import watch
from batchnorm.diagnosis.run.rules import STEPS, STILL
from batchnorm.diagnosis.run.watching import BatchNormWarning


def block(inputs=4, width=8):
    part = nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU())
    part[1].running_mean.fill_(1e-3)  # as if trained before: short runs have no initial value to complain of
    return part


def net():
    return nn.Sequential(block(), nn.Linear(8, 2))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Sequential(block(), block(8)), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.backbone(x))


def batch(seed=None, size=32):
    return torch.randn(size, 4, generator=None if seed is None else torch.Generator().manual_seed(seed))


def watched(model, optimizer, step, length=20, **options):
    """`step(i)` forwards and does backward; the report, and what was said as (code, step)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with watch(model, optimizer, **options) as report:
            for i in range(length):
                optimizer.zero_grad()
                step(i)
                optimizer.step()
    texts = [str(w.message) for w in said if issubclass(w.category, BatchNormWarning)]
    return report, [(t[:5], int(t.split("step ")[1].split(":")[0])) for t in texts]


def sgd(*models, rate=0.01):
    return torch.optim.SGD([p for m in models for p in m.parameters() if p.requires_grad], lr=rate)


def learn(model, x):
    model(x).square().mean().backward()


def codes(report):
    return {f.code for f in report.findings}


def message(report, code):
    return next(f.message for f in report.findings if f.code == code)


CONTAINERS = {
    "list": lambda a, b: nn.ModuleList([a, b]),
    "dict": lambda a, b: nn.ModuleDict({"teacher": a, "student": b}),
    "nested": lambda a, b: nn.ModuleDict({"pair": nn.ModuleList([a, b])}),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_teacher_in_train_mode_that_is_called_and_not_the_watched_root(container):
    teacher, student = net(), net()

    def step(i):
        with torch.no_grad():
            target = teacher(batch())
        (student(batch()) - target).square().mean().backward()

    whole = CONTAINERS[container](teacher, student)
    report, said = watched(whole, sgd(student), step)
    assert said == [("BN303", 0)]
    name = next(n for n, m in whole.named_modules() if m is teacher[0][1])
    assert [f.layer for f in report.findings] == [name]
    assert report.layers[name].silent_calls == 20
    assert report.evidence.forwards == 20
    teacher.eval()
    assert watched(whole, sgd(student), step)[0].findings == []


def test_inference_mode_and_a_layer_called_by_itself():
    model = Backbone()

    def step(i):
        if i == 7:
            with torch.inference_mode():
                model.backbone[1][1](torch.randn(8, 8))
        learn(model, batch())

    report, _ = watched(model, sgd(model), step)
    assert [(f.code, f.layer) for f in report.findings] == [("BN303", "backbone.1.1")]


def test_a_momentum_encoder_inside_the_forward_is_meant():
    class Contrast(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = net(), net()

        def forward(self, x):
            with torch.no_grad():
                key = self.key(x)
            return self.query(x) - key

    model = Contrast()
    assert watched(model, sgd(model.query), lambda i: learn(model, batch()), length=8)[0].findings == []


def test_one_part_validated_in_train_mode():
    model = Backbone()

    def step(i):
        if i == 4:
            model.eval()
            model.backbone[0].train()
            with torch.no_grad():
                model(batch())
            model.train()
        learn(model, batch())

    report, said = watched(model, sgd(model), step)
    assert said == [("BN303", 4)]
    assert report.findings[0].layer == "backbone.0.1"
    assert "in a part that was in eval otherwise" in report.findings[0].message


def test_an_eval_that_never_goes_back():
    model = net()

    def step(i):
        if i == 10:
            with torch.no_grad():
                model.eval()(batch())
        learn(model, batch())

    report, said = watched(model, sgd(model), step, length=30)
    assert said == [("BN314", 20)]
    assert "until step 10, then 20 optimizer steps" in message(report, "BN314")
    assert report.layers["0.1"].modes == [(1, "train"), (11, "eval")]
    assert codes(report) == {"BN314"}


def test_a_train_that_was_never_called_and_the_count_at_its_edge():
    for length, found in ((STEPS - 1, set()), (STEPS, {"BN314"})):
        model = net().eval()
        report, _ = watched(model, sgd(model), lambda i, m=model: learn(m, batch()), length=length)
        assert codes(report) == found
    assert "so far 5 optimizer steps were taken with the model in eval" in message(report, "BN314")


def test_one_of_two_called_parts_stays_in_eval():
    first, second = block(), nn.Sequential(block(8), nn.Linear(8, 2))
    first.eval()
    model = nn.ModuleList([first, second])
    report, said = watched(model, sgd(model), lambda i: learn(second, first(batch())), length=12)
    assert said == [("BN314", 5)]
    assert [f.layer for f in report.findings] == ["0.1"]


@pytest.mark.parametrize("spelling", ["each step", "override", "affine frozen"])
def test_trained_with_the_stored_statistics_is_a_note(spelling):
    class Held(Backbone):
        def train(self, mode=True):
            super().train(mode)
            for m in self.modules():
                if isinstance(m, nn.BatchNorm1d):
                    m.eval()
            return self

    model = (Held if spelling == "override" else Backbone)().train()
    if spelling == "affine frozen":
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.requires_grad_(False)

    def step(i):
        model.train()
        if spelling != "override":
            for m in model.modules():
                if isinstance(m, nn.BatchNorm1d):
                    m.eval()
        learn(model, batch())

    report, said = watched(model, sgd(model), step)
    assert said == []
    assert [(f.code, f.layer, f.severity) for f in report.findings] == [
        ("BN313", "backbone.0.1", "note"),
        ("BN313", "backbone.1.1", "note"),
    ]
    assert "20 of 20 optimizer steps" in message(report, "BN313")
    batchnorm.freeze(model)
    assert watched(model, sgd(model), step)[0].findings == []


def test_what_does_not_train_in_eval_is_not_counted():
    model = Backbone()
    model.backbone.eval().requires_grad_(False)
    optimizer = sgd(model)
    assert watched(model, optimizer, lambda i: learn(model, batch()))[0].findings == []
    teacher, student = net().eval(), net()  # with gradients that no optimizer uses
    pair = nn.ModuleList([teacher, student])
    report, _ = watched(pair, sgd(student), lambda i: (student(batch()) - teacher(batch())).square().mean().backward())
    assert report.findings == []
    attacked = net()  # an attack in eval before each step in train mode

    def step(i):
        x = batch().requires_grad_()
        attacked.eval()(x).square().mean().backward()
        attacked.zero_grad()
        learn(attacked.train(), (x + 0.1 * x.grad.sign()).detach())

    report, _ = watched(attacked, sgd(attacked), step)
    assert report.findings == []
    assert (report.layers["0.1"].batch_steps, report.layers["0.1"].stored_steps) == (20, 0)


def head_only(model, length=20, start_eval=True):
    if start_eval:
        model.backbone.eval()

    def step(i):
        if i == 4:
            model.train()  # what each epoch begins with
        learn(model, batch())

    return watched(model, sgd(model.head), step, length=length)


def test_a_freeze_undone_by_train_while_only_the_head_is_in_the_optimizer():
    report, said = head_only(Backbone())
    assert said == [("BN302", 20)]
    assert {f.layer for f in report.findings} == {"backbone.0.1", "backbone.1.1"}
    assert "the optimizer does not hold it" in report.findings[0].message
    assert "in eval until .train() undid that before step 5" in report.findings[0].message
    # STILL steps in train mode are needed: steps 5 to 13 are one short, 5 to 14 are enough.
    assert codes(head_only(Backbone(), length=STILL + 3)[0]) == set()
    assert codes(head_only(Backbone(), length=STILL + 4)[0]) == {"BN302"}


def test_a_layer_that_something_else_trains_is_not_still():
    generator, critic = net(), nn.Sequential(block(2), nn.Linear(8, 1))
    other = sgd(generator)
    both = nn.ModuleList([generator, critic])

    def step(i):
        learn(critic, generator(batch()).detach())
        if i % 5 == 4:
            other.zero_grad()
            learn(nn.Sequential(generator, critic), batch())
            other.step()

    assert codes(watched(both, sgd(critic), step, length=40)[0]) == set()
    model = Backbone()  # two optimizers, one of them watched
    rest = sgd(model.backbone)

    def step_of_both(i):
        rest.zero_grad()
        learn(model, batch())
        rest.step()

    assert codes(watched(model, sgd(model.head), step_of_both)[0]) == set()


def test_drift_is_said_at_the_evaluation_and_again_at_the_end():
    model = net()

    def step(i):
        with torch.no_grad():
            model[0][0].bias.add_(0.2)
        learn(model, batch())
        if i + 1 in (30, 70, 90):
            with torch.no_grad():
                model.eval()(batch())
                model(batch())
            model.train()

    report, said = watched(model, sgd(model), step, length=90, every=5)
    # At step 30 there were ten looks: 1 to 5, then every fifth. The evaluation belongs to the steps before it.
    assert said[0][0] == "BN310"
    assert said[0][1] in (29, 69)
    assert len(said) == 1
    assert "at the end" in message(report, "BN310")
    assert report.evidence.evaluations == 3
    assert all(lag.drift > 0.3 for lag in report.layers["0.1"].lags)


def test_a_spike_that_is_over_by_the_end_stays_in_the_report():
    model = net()

    def step(i):
        if i < 60:
            with torch.no_grad():
                model[0][0].bias.add_(0.2)
        learn(model, batch())
        if i + 1 in (60, 300):
            with torch.no_grad():
                model.eval()(batch())
            model.train()

    report, said = watched(model, sgd(model), step, length=300, every=5)
    assert [c for c, _ in said] == ["BN310"]
    assert "at the evaluation after step 59, one of 1 of 2 evaluations," in message(report, "BN310")


def test_evaluations_of_a_healthy_run_are_silent():
    model = net()

    def step(i):
        learn(model, batch())
        if i % 10 == 9:
            with torch.no_grad():
                model.eval()(batch())
            model.train()

    report, said = watched(model, sgd(model), step, length=150)
    assert (report.findings, said) == ([], [])
    assert report.evidence.evaluations == 15


def test_an_interrupted_forward_does_not_stop_the_count():
    class Stops(nn.Module):
        on = False

        def forward(self, x):
            if self.on:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(block(), Stops(), nn.Linear(8, 2))

    def step(i):
        model[1].on = i == 3
        if i == 3:
            with pytest.raises(KeyboardInterrupt), torch.no_grad():
                model.eval()(batch())
            model.train()
        model[1].on = False
        learn(model, batch())

    report, _ = watched(model, sgd(model), step)
    assert report.evidence.forwards == 20
    assert report.findings == []


def test_a_checkpointed_part_is_recomputed_and_not_entered():
    model = nn.ModuleList([block(), nn.Linear(8, 2)])

    def step(i):
        learn(model[1], checkpoint(model[0], batch(), use_reentrant=False))

    report, _ = watched(model, sgd(model), step)
    assert report.evidence.forwards == 20  # the linear layer holds no batch norm
    assert codes(report) == {"BN301"}


def test_steps_and_modes_are_in_the_table_and_the_file(tmp_path):
    model = net()
    report, _ = watched(model, sgd(model), lambda i: learn(model, batch()), length=6)
    report.to_json(tmp_path / "run.json")
    layer = json.loads((tmp_path / "run.json").read_text())["layers"]["0.1"]
    assert (layer["batch_steps"], layer["stored_steps"], layer["modes"]) == (6, 0, [[1, "train"]])
    # The heading breaks where the terminal is narrow.
    assert "in train" in " ".join(str(report).split())


def test_no_hook_is_left_on_any_part():
    model = copy.deepcopy(Backbone())
    watch(model).close()
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())


def _rank(rank, port, sharded, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    parallel = nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(rank)
    optimizer = sgd(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with watch(model, optimizer) as report:
            for _ in range(120):
                optimizer.zero_grad()
                learn(parallel, torch.randn(64, 4) + 0.8 * rank * sharded)
                optimizer.step()
    results[rank] = [f.code for f in report.findings], [str(w.message)[:5] for w in said]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [True, False])
def test_ranks_with_other_data_under_broadcast_buffers(sharded):
    import torch.multiprocessing as mp

    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_rank, (29551 + sharded, sharded, results), nprocs=2)
    for rank in (0, 1):
        assert results[rank][0] == (["BN304"] if sharded else [])


def test_a_module_that_calls_itself_counts_once():
    """Lightning's strategies put the training step in the place of forward for a call, in which it calls itself."""

    class Stepping(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, outer=True):
            return self(x, False) if outer else self.net(x)

    model = Stepping()
    report, _ = watched(model, sgd(model), lambda i: learn(model, batch()), length=6)
    assert (report.evidence.steps, report.evidence.forwards) == (6, 6)
