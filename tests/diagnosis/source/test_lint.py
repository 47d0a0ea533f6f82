# ruff: noqa: E501
"""Every source rule finds its planted case, and is silent on the same code done right."""

import ast
import subprocess
import sys

import pytest

from batchnorm.diagnosis import lint
from batchnorm.diagnosis.source.flake8 import Plugin
from batchnorm.diagnosis.source.rules import LOOKS
from batchnorm.errors import BatchNormError

HEAD = "import torch\nfrom torch import nn\nfrom torch.optim.swa_utils import AveragedModel\n"
# code, severity, what fires, what is the same done right
CASES = [
    ("BN401", "warning", "bn.running_mean = m * bn.running_mean + (1 - m) * bn.running_mean",
     "bn.running_mean = m * bn.running_mean + (1 - m) * mean"),
    ("BN401", "warning", "bn.running_var.data = 0.9 * bn.running_var + 0.1 * bn.running_var",
     "bn.running_var.data = 0.9 * bn.running_var + 0.2 * bn.running_var"),
    ("BN401", "warning", "net.bn.running_mean.copy_(net.bn.running_mean)", "net.bn.running_mean.copy_(old.bn.running_mean)"),
    ("BN401", "warning", "bn.running_mean = torch.lerp(bn.running_mean, bn.running_mean, 0.1)",
     "bn.running_mean = torch.lerp(bn.running_mean, mean, 0.1)"),
    ("BN402", "warning", "def f(model, bn, x):\n    model.eval()\n    bn.running_mean = 0.9 * bn.running_mean + 0.1 * x.mean(0)",
     "def f(model, bn, x):\n    model.train()\n    bn.running_mean = 0.9 * bn.running_mean + 0.1 * x.mean(0)"),
    ("BN402", "warning", "def f(model, bn, x):\n    model.eval()\n    bn.running_var.mul_(0.9)\n    bn.running_mean *= 0.9",
     "def f(model, bn, x):\n    model.eval()\n    bn.running_var.copy_(x.var(0))"),
    ("BN403", "note", "nn.BatchNorm2d(3, momentum=0.9)", "nn.BatchNorm2d(3, momentum=0.1)"),
    ("BN403", "note", "nn.BatchNorm1d(3, 1e-3, 0.99)", "nn.BatchNorm1d(3, 1e-3, 0.01)"),
    ("BN403", "note", "torch.nn.SyncBatchNorm(3, momentum=0.9)", "nn.GroupNorm(3, 3, 0.9)"),
    ("BN404", "note", "from tensorflow.keras import layers\nlayers.BatchNormalization(momentum=0.1)",
     "from tensorflow.keras import layers\nlayers.BatchNormalization(momentum=0.9)"),
    ("BN405", "note",
     "model = nn.Sequential(nn.BatchNorm1d(3))\nmodel(x).sum().backward()\nwith torch.no_grad():\n    y = model(x)",
     "model = nn.Sequential(nn.BatchNorm1d(3))\nmodel(x).sum().backward()\nmodel.eval()\nwith torch.no_grad():\n    y = model(x)"),
    ("BN406", "warning",
     "for m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.weight.requires_grad = False\nnet.train()",
     "for m in net.modules():\n    if isinstance(m, nn.Conv2d):\n        m.weight.requires_grad = False\nnet.train()"),
    ("BN406", "warning",
     "for m in net.modules():\n    if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):\n        for p in m.parameters():\n"
     "            p.requires_grad = False\nnet.train()",
     "def train(self, mode=True):\n    super().train(mode)\n    for m in net.modules():\n        if isinstance(m, nn.BatchNorm2d):\n"
     "            m.eval()\n            m.weight.requires_grad = False"),
    ("BN407", "warning", "for m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.momentum = 0.0",
     "for m in net.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        kept = m.momentum\n        m.momentum = 0.0"),
    ("BN407", "warning", "nn.BatchNorm2d(3, momentum=0)", "nn.BatchNorm2d(3, momentum=None)"),
    ("BN408", "warning",
     "def fit(net):\n    for m in net.modules():\n        if isinstance(m, nn.BatchNorm2d):\n            m.eval()\n"
     "    for epoch in range(3):\n        net.train()",
     "def fit(net):\n    for epoch in range(3):\n        net.train()\n        for m in net.modules():\n"
     "            if isinstance(m, nn.BatchNorm2d):\n                m.eval()"),
    ("BN409", "warning",
     "net = nn.Sequential(nn.BatchNorm1d(3))\nswa = AveragedModel(net)\nswa.update_parameters(net)\nswa.eval()",
     "net = nn.Sequential(nn.BatchNorm1d(3))\nswa = AveragedModel(net)\nswa.update_parameters(net)\nupdate_bn(loader, swa)\nswa.eval()"),
    ("BN410", "note", "from torch.optim.swa_utils import update_bn\nnet = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))\nupdate_bn(loader, net)",
     "from torch.optim.swa_utils import update_bn\nnet = nn.Sequential(nn.BatchNorm1d(3))\nupdate_bn(loader, net)"),
    ("BN411", "warning", "for m in net.modules():\n    m.track_running_stats = False",
     "for m in net.modules():\n    m.track_running_stats = False\n    m.running_mean = None\n    m.running_var = None"),
    ("BN412", "warning", "net = nn.BatchNorm1d(3)\ndef f(net, x):\n    net.train()\n    with torch.no_grad():\n        return net(x)",
     "def f(net, x):\n    net.train()\n    y = net(x)\n    net.eval()\n    with torch.no_grad():\n        return net(x)"),
    ("BN412", "warning", "from torchsummary import summary\nnet = nn.Sequential(nn.BatchNorm2d(3))\nsummary(net, (3, 8, 8))",
     "from torchsummary import summary\nnet = nn.Sequential(nn.BatchNorm2d(3)).cpu()\nnet.eval()\nsummary(net, (3, 8, 8))"),
    ("BN413", "warning",
     "net = nn.BatchNorm1d(3)\nfor a, b in zip(ema.parameters(), net.parameters()):\n    a.data.mul_(0.9).add_(b.data, alpha=0.1)",
     "net = nn.BatchNorm1d(3)\nfor a, b in zip(ema.parameters(), net.parameters()):\n    a.data.mul_(0.9).add_(b.data, alpha=0.1)\n"
     "for a, b in zip(ema.buffers(), net.buffers()):\n    a.copy_(b)"),
    ("BN413", "note", "for a, b in zip(ema.parameters(), net.parameters()):\n    a.data = a.data * 0.9 + b.data * 0.1",
     "for a, b in zip(ema.parameters(), net.parameters()):\n    a.data = b.data"),
    ("BN414", "warning", "sd = net.state_dict()\nfor k in sd.keys():\n    sd[k] = sd[k] / 3",
     "sd = net.state_dict()\nfor k in sd.keys():\n    if sd[k].is_floating_point():\n        sd[k] = sd[k] / 3"),
    ("BN414", "warning",
     "def avg(w):\n    a = net.state_dict()\n    for k in a.keys():\n        a[k] = torch.div(a[k], len(w))\n    return a",
     "def avg(w):\n    a = net.state_dict()\n    for k in a.keys():\n        a[k] = a[k].clone()\n    return a"),
    ("BN415", "note", "for name, p in net.named_parameters():\n    if 'bn' in name:\n        p.requires_grad = False",
     "for name, m in net.named_modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.weight.requires_grad_(True)"),
    ("BN415", "note", "decay = [p for n, p in net.named_parameters() if 'bn' not in n]",
     "decay = [p for n, p in net.named_parameters() if 'bias' not in n]"),
    ("BN416", "warning", "nn.BatchNorm2d(4, momentum=2)", "nn.BatchNorm2d(4, momentum=1.0)"),
    ("BN416", "warning", "nn.BatchNorm1d(4, 1e-5, -0.1)", "nn.BatchNorm1d(4, -0.1, 0.1)"),
]  # fmt: skip


def found(tmp_path, text):
    file = tmp_path / "code.py"
    file.write_text(HEAD + text + "\n")
    return [(f.code, f.severity) for f in lint(file).findings]


@pytest.mark.parametrize(("code", "severity", "wrong", "right"), CASES)
def test_finds_its_case_alone_and_is_silent_on_what_is_right(tmp_path, code, severity, wrong, right):
    assert set(found(tmp_path, wrong)) == {(code, severity)}
    assert code not in {c for c, _ in found(tmp_path, right)}


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == set(LOOKS)


@pytest.mark.parametrize(
    "text",
    [
        # the library's own pattern: restored afterwards
        "def disable(model):\n    for m in model.modules():\n        if isinstance(m, nn.BatchNorm2d):\n"
        "            m.backup_momentum = m.momentum\n            m.momentum = 0",
        # a re-estimation runs in train mode under no_grad on purpose
        "@torch.no_grad()\ndef update(model, loader):\n    model.train()\n    momentum = None\n    for x in loader:\n        model(x)",
        # one branch only
        "def f(model, x, training):\n    if training:\n        model.train()\n    with torch.no_grad():\n        return model(x)",
        # a class that knows its own names
        "class Net(nn.Module):\n    def init(self):\n        for n, p in self.named_parameters():\n            if 'bn' in n:\n"
        "                nn.init.ones_(p)",
        # silenced
        "nn.BatchNorm2d(3, momentum=0.9)  # noqa: BN403",
        "nn.BatchNorm2d(3, momentum=0.9)  # noqa",
        # numbers that are not literal are not guessed
        "nn.BatchNorm2d(3, momentum=m)",
        "nn.BatchNorm2d(*sizes, 0.9)",
    ],
)
def test_silent(tmp_path, text):
    assert found(tmp_path, text) == []


def test_a_noqa_for_another_code_silences_nothing(tmp_path):
    assert found(tmp_path, "nn.BatchNorm2d(3, momentum=0.9)  # noqa: E501") == [("BN403", "note")]


def test_a_folder_with_what_is_no_python(tmp_path):
    (tmp_path / "a.py").write_text("import torch\nbn.running_var = bn.running_var\n")
    (tmp_path / "b.py").write_text("def batch_norm(:\n")
    (tmp_path / "c.py").write_bytes(b"# batchnorm \xff\xfe\n")
    (tmp_path / "d.py").write_text("batch_norm = " + "(" * 3000 + ")" * 3000)
    report = lint(tmp_path)
    assert [(f.code, f.layer) for f in report.findings] == [("BN401", f"{tmp_path / 'a.py'}:2")]
    why = {name.rsplit("/", 1)[1]: reason for name, reason in report.evidence.unreadable.items()}
    assert why.keys() == {"b.py", "c.py", "d.py"}
    assert why["b.py"] == "line 1: invalid syntax"
    assert why["c.py"].startswith("no text in the encoding it declares, or in UTF-8")
    assert not report.ok
    assert report.verdict == "1 finding in 1 of 1 file"
    assert report.headline().endswith("(1 file, 3 lines, 3 could not be parsed)")
    with pytest.raises(BatchNormError, match="none at"):
        lint(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"import torch\ndef f(:\n", r"path must be Python source; .*code.py is not: line 2: invalid syntax"),
        (b"x = 1\n  y = 2\n", r"code.py is not: line 2: unexpected indent"),
        (b"\x89PNG\xff\xfe\x00", r"code.py is not: no text in the encoding it declares, or in UTF-8"),
        (b"x = 1\n\x00\n", r"code.py is not: .*null bytes"),
        (b"x = " + b"(" * 3000 + b")" * 3000, r"code.py is not: .*(nested|too many)"),
    ],
)
def test_a_single_file_that_is_no_python_is_an_error(tmp_path, content, sentence):
    (tmp_path / "code.py").write_bytes(content)
    with pytest.raises(BatchNormError, match=sentence):
        lint(tmp_path / "code.py")


def test_a_folder_without_python_is_an_error(tmp_path):
    (tmp_path / "readme.txt").write_text("import torch\n")
    with pytest.raises(BatchNormError, match=r"path must hold Python source; there is no \.py file under"):
        lint(tmp_path)


def test_notes_are_in_the_verdict(tmp_path):
    (tmp_path / "a.py").write_text(HEAD + "nn.BatchNorm2d(3, momentum=0.9)\n")
    (tmp_path / "b.py").write_text("x = 1")
    report = lint(tmp_path)
    assert report.ok
    assert report.verdict == "1 note in 1 of 2 files"
    assert lint(tmp_path / "b.py").headline() == "Diagnosis: nothing to say about batch norm (1 file, 1 line)"


def test_nothing_is_imported_or_run(tmp_path):
    (tmp_path / "a.py").write_text("import batchnorm_that_does_not_exist\nopen('here', 'w')\n")
    assert lint(tmp_path).ok
    assert not (tmp_path / "here").exists()


def test_flake8_plugin_gives_lines_and_texts():
    text = "import torch\ntorch.nn.BatchNorm2d(3, momentum=0.9)\n"
    (line, column, message, kind), *rest = Plugin(ast.parse(text), text.splitlines(keepends=True)).run()
    assert (line, column, kind, rest) == (2, 0, Plugin, [])
    assert message.startswith("BN403 maybe: momentum=0.9")


def test_command_line(tmp_path):
    (tmp_path / "a.py").write_text("bn.running_var = bn.running_var\n")
    command = [sys.executable, "-m", "batchnorm.cli", "lint", str(tmp_path / "a.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "BN401" in result.stdout
