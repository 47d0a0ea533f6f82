"""Tables of layers at the width of a terminal: names stay apart, numbers whole, and nothing is wider than it."""

import random

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import models
from batchnorm.diagnosis.run.watch import BatchNormWarning
from batchnorm.models.tables import LayerTable, as_text, part_of, shortened
from tests.command import run

DENSE = [
    "features.norm0",
    *(
        f"features.denseblock{block}.denselayer{layer}.norm{norm}"
        for block, layers in enumerate((6, 12, 24, 16), 1)
        for layer in range(1, layers + 1)
        for norm in (1, 2)
    ),
    *(f"features.transition{block}.norm" for block in (1, 2, 3)),
    "features.norm5",
]
STAGES = [
    f"{half}.stages.{stage}.blocks.{block}.conv_pw.bn"
    for half in ("encoder", "decoder")
    for stage in (0, 1)
    for block in (0, 10)
]
DEEP = [f"blocks.{i}.blocks.{j}.blocks.{k}.bn1.norm" for i in (0, 1) for j in (0, 1) for k in (0, 11)]


def network(names):
    """Batch norm layers under these names, one after the other."""

    class Chain(nn.Module):
        def forward(self, x):
            for name in names:
                x = self.get_submodule(name)(x)
            return x

    root = Chain()
    for name in names:
        *parents, last = name.split(".")
        module = root
        for part in parents:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.add_module(last, nn.BatchNorm1d(2))
    return root


def data():
    return list((torch.randn(128, 2) * 3 + 1).split(16))


def first_column(text, number=0):
    """The first cell of every row, and of rows that go on in a second line the rest."""
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return [row[number].strip() for row in rows]


def test_there_are_121_layers_of_a_dense_network():
    assert len(DENSE) == len(set(DENSE)) == 121


@pytest.mark.parametrize(
    "names", [DENSE, STAGES, DEEP, ["bn", "bn1"], [""]], ids=["dense", "stages", "deep", "short", "root"]
)
@pytest.mark.parametrize("width", [14, 16, 20, 28, 40, 60])
def test_shortened_names_are_as_different_as_before_and_fit(names, width):
    found = shortened(names, width)
    assert len(set(found)) == len(names)
    assert max(map(len, found)) <= width
    assert all(short == name for short, name in zip(found, names, strict=True) if len(name) <= width)


def test_the_front_is_cut_first_then_the_middle_then_the_parts():
    assert shortened(["net.block1.norm", "net.block2.norm"], 13) == ["…block1.norm", "…block2.norm"]
    assert shortened(["a.long.long.long.norm", "b.long.long.long.norm"], 12) == ["a.lo…ng.norm", "b.lo…ng.norm"]
    assert shortened(["features.block1.layer10.norm1", "features.block2.layer10.norm1"], 14) == [
        "f.b1.l10.norm1",
        "f.b2.l10.norm1",
    ]


def test_where_no_cut_leaves_them_apart_they_stay_whole():
    names = ["alpha.one.norm", "alpine.one.norm", "alto.one.norm"]
    assert shortened(names, 4) == names


@pytest.mark.parametrize("names", [DENSE, STAGES, DEEP], ids=["dense", "stages", "deep"])
@pytest.mark.parametrize("columns", [80, 100])
def test_every_printed_table_of_layers_keeps_them_apart(monkeypatch, names, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    net, batches = network(names), data()
    adaptation = models.adapt(net, mode="batch")
    printed = [str(adaptation)]
    adaptation.undo()
    printed.append(str(models.rank_report(net)))
    printed.append(str(models.recalibrate(net, batches, progress=False)))
    for text in printed:
        assert max(map(len, text.splitlines())) <= columns
        rows = first_column(text)
        assert len(rows) == len(set(rows)) == len(names)


def test_diagnose_watch_and_inspect_at_80_columns(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    net, batches = network(DENSE), data()
    with pytest.warns(BatchNormWarning, match="BN308"), batchnorm.watch(net) as watched:
        net.train()(batches[0])
    torch.save(net.state_dict(), tmp_path / "dense.pt")
    reports = [
        watched,
        batchnorm.inspect_checkpoint(tmp_path / "dense.pt"),
        batchnorm.diagnose(net, batches, progress=False),
    ]
    for report in reports:
        # The table of a run has nine columns, and at this width no lines between them.
        lines = [line.split()[0] for line in str(report).splitlines() if ".norm" in line or "features" in line]
        rows = first_column(str(report)) or [word for word in lines if "norm" in word][:121]
        assert len(rows) == len(set(rows)) == 121
        table = [line for line in str(report).splitlines() if line[:1] in "│┃┏┡└"]
        assert max(map(len, table)) <= 80


def test_fold_names_the_layer_and_where_it_went(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    blocks = nn.ModuleDict()
    for name in ("encoder_of_the_images", "encoder_of_the_words"):
        blocks[name] = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = blocks

        def forward(self, x):
            return sum(block(x) for block in self.blocks.values())

    text = str(models.fold(Two(), torch.randn(4, 2), timing=0))
    assert max(len(line) for line in text.splitlines() if line[:1] in "│┃┏┡└") <= 80
    for column in (0, 1):
        assert len(set(first_column(text, column))) == 2


def test_numbers_are_not_broken_and_words_are():
    table = LayerTable(("layer", "a long heading of words"), [("x" * 50, "123456.789"), ("y" * 50, "1")])
    from rich.console import Console

    with Console(width=40, color_system=None) as console, console.capture() as captured:
        console.print(table)
    assert "123456.789" in captured.get()


def test_without_room_for_names_the_lines_are_dropped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    header = ("layer", *(f"column{i}" for i in range(6)))
    text = as_text(LayerTable(header, [("alpha.beta.norm", *["0.123"] * 6), ("alpha.gamma.norm", *["0.123"] * 6)]))
    assert "│" not in text
    assert [line.split()[0] for line in text.splitlines()] == ["layer", "…beta.norm", "…gamma.norm"]
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0.0% of it"),
        (0.999, "99.9% of it"),
        (2.0, "200.0% of it"),
        (2.0004, "200.0% of it"),
        (2.01, "2.0 times it"),
        (3.14, "3.1 times it"),
        (9.96, "10.0 times it"),
        (31.4, "31 times it"),
        (12345.6, "12,346 times it"),
        (float("inf"), "inf times it"),
    ],
)
def test_ratios_above_200_percent_are_factors(value, said):
    assert part_of(value, "it") == said


@pytest.mark.parametrize(("value", "said"), [(2.0, "200%"), (2.004, "200%"), (2.01, "2.0 times")])
def test_the_edge_is_where_the_printed_percent_is_above_200(value, said):
    assert part_of(value, "", 0) == said


def test_the_verdict_of_a_model_whose_modes_differ_by_more_than_twice(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(3))
    net[0].running_var.fill_(100.0)
    report = batchnorm.diagnose(net, list((torch.randn(256, 3)).split(64)), progress=False)
    assert report.evidence.output_gap > 2
    assert f"differ by {report.evidence.output_gap:.1f} times their size" in report.headline()
    assert "%" not in report.headline().partition("differ by")[2].partition(",")[0]


@pytest.mark.parametrize("columns", ["80"])
def test_the_command_line_at_80_columns(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    torch.save(network(DENSE).state_dict(), tmp_path / "dense.pt")
    shown = run(tmp_path, "inspect", "dense.pt").stdout
    rows = first_column(shown)
    assert len(rows) == len(set(rows)) == 121


def test_printing_draws_no_random_numbers_of_the_callers():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    assert as_text("[link=https://a.b]a[/link]")
    assert random.random() == expected
