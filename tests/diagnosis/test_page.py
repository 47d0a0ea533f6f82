"""The page: one file, nothing loaded, whatever the layers are called; small; and drawn in a real browser."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.diagnosis import inspect_checkpoint, lint, watch
from batchnorm.diagnosis.report import Table, Timeline

DATA = torch.randn(256, 8, generator=torch.Generator().manual_seed(0)).split(32)


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def broken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.BatchNorm1d(4))
    batchnorm.recalibrate(model, DATA)
    model[4].running_mean += 2 * model[4].running_var.sqrt()
    return model


def nothing_is_loaded(page):
    assert not re.search(
        r"""(src|href)\s*=\s*["']?[^"'#\s]""", re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.S)
    )
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_a_model_s_page_holds_its_numbers(tmp_path):
    report = batchnorm.diagnose(broken(), DATA, lambda output, batch: output.square().mean())
    report.to_html(tmp_path / "a.html", [Timeline("Loss", "over steps", {"loss": [(1, 2.0), (2, 1.0)]})],
                   [Table("Mine", ["a", "b"], [["x", "1"]])])  # fmt: skip
    page = (tmp_path / "a.html").read_text()
    nothing_is_loaded(page)
    for text in ("Statistics lag behind the data", "BN104", "batchnorm.recalibrate(model, loader)", "Mine"):
        assert text in page
    data = data_of(page)
    assert [layer["name"] for layer in data["layers"]] == ["1", "4"]
    assert data["layers"][1]["value"] == pytest.approx(2.0, rel=0.01)
    assert data["layers"][1]["state"] == "warning"
    assert data["layers"][0]["state"] is None
    assert sum(data["layers"][0]["histogram"]) == 4 * 32 * 6
    assert data["timelines"][0]["lines"] == {"loss": [[1, 2.0], [2, 1.0]]}
    assert [name for name, _ in data["metric"]] == [
        "stored statistics (eval mode)", "statistics of the batch (train mode)",
        "exact statistics (recalibrated)"]  # fmt: skip


def test_every_kind_of_report_has_a_page(tmp_path):
    torch.save(broken().state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.py").write_text("bn.running_var = bn.running_var\n")
    model = broken().train()
    with watch(model) as run:
        for batch in DATA * 8:
            model(batch).sum().backward()
    kinds = [inspect_checkpoint(tmp_path / "a.pt"), inspect_checkpoint(tmp_path / "a.pt", tmp_path / "a.pt"),
             lint(tmp_path / "a.py"), run]  # fmt: skip
    for report in kinds:
        report.to_html(tmp_path / "r.html")
        page = (tmp_path / "r.html").read_text()
        nothing_is_loaded(page)
        data_of(page)
        report.to_json(tmp_path / "r.json")
        saved = json.loads((tmp_path / "r.json").read_text())
        assert {"kind", "ok", "verdict", "findings"} <= set(saved)
        assert saved["kind"] == report.subject.kind


def test_a_layer_may_be_called_anything(tmp_path):
    model = nn.Module()
    name = "</script><script>alert(1)</script><b>"
    model.add_module(name, nn.BatchNorm1d(8))
    model.forward = lambda x: getattr(model, name)(x)
    batchnorm.diagnose(model, [batch + 3 for batch in DATA]).to_html(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<script>alert" not in page
    assert "<b>" not in page.split("<script")[0].split("</style>")[1]
    assert data_of(page)["layers"][0]["name"] == name


def wide(layers, channels):
    model = nn.Sequential(*[nn.BatchNorm1d(channels) for _ in range(layers)])
    data = torch.randn(64, channels, generator=torch.Generator().manual_seed(0)).split(32)
    batchnorm.recalibrate(model, data)
    for layer in model:
        layer.running_mean += 0.2 * torch.randn(channels)
    return batchnorm.diagnose(model, data)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [256, 1024])
def test_two_hundred_layers_stay_below_two_megabytes(tmp_path, channels):
    wide(200, channels).to_html(tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size < 2_000_000
    layers = data_of((tmp_path / "a.html").read_text())["layers"]
    assert len(layers) == 200
    assert layers[0]["numbers"] is None if channels == 256 else len(layers[0]["numbers"]) == 300


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_draws_it_without_an_error():
    report = batchnorm.diagnose(broken(), DATA, lambda output, batch: output.square().mean())
    with tempfile.TemporaryDirectory() as folder:
        report.to_html(f"{folder}/a.html")
        page = Path(folder, "a.html")
        # Errors, and what a key press selects, are written into the title.
        check = """<script>window.onerror = (m) => (document.title = "error: " + m);</script>"""
        press = """<script>const s = document.querySelector(".strip");
            s.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
            const count = (what) => document.querySelectorAll("#layer " + what).length;
            document.title += ["", document.querySelector("#layer h3").textContent, s.children.length].join("|")
              + "|" + count("svg") + "|" + count(".dot");
            </script></body>"""
        text = page.read_text().replace("<style>", check + "<style>", 1).replace("</body>", press)
        page.write_text(text)
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{page}"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", shown)[1]
    assert title.split("|")[1:] == ["1", "2", "3", "6"]
    assert "error" not in title
