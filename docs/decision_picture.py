"""Draws the decision of docs/eval-is-bad.md, in English and in Chinese, as SVG that reads on light and dark pages.

python docs/decision_picture.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
STYLE = (
    "text{font:15px system-ui,'Segoe UI',Roboto,Arial,'Noto Sans SC','Microsoft YaHei',sans-serif;fill:#17191c}"
    ".b{font-weight:600}.s{fill:#505760;font-size:14px}rect{fill:#fff;stroke:#8a929b}.page{fill:#f6f6f3;stroke:none}"
    ".q{stroke:#2a62c9;stroke-width:2}#a path{fill:#505760}"
    ".e{stroke:#505760;stroke-width:1.5;fill:none;marker-end:url(#a)}"
    "@media(prefers-color-scheme:dark){text{fill:#e9eaec}.s{fill:#a8afb9}rect{fill:#1c1f24;stroke:#5d656f}"
    ".page{fill:#14161a}.q{stroke:#86b1fa}.e{stroke:#a8afb9}#a path{fill:#a8afb9}}"
)
# Three questions; what the answer that leaves the path means; what the last answer means. First lines are bold.
TEXTS = {
    "": {
        "title": "Good in train mode, bad in eval mode: three questions",
        "yes": "yes",
        "no": "no",
        "questions": [
            ["1  Is eval mode bad", "on the training data too?"],
            ["2  Is it good with the batch's", "own statistics (dropout off)?"],
            ["3  Is it good with exact", "statistics (recalibrated)?"],
        ],
        "leave": [
            ["Not batch norm, or other data", "overfitting, preprocessing", "BN121: one preprocessing, adapt, banks"],
            ["Not the statistics", "dropout, stochastic depth, a broken weight", "BN118: nothing to recalibrate"],
            ["Training leans on its batches", "too small, of one kind, padded, mixed", "section B: train otherwise"],
        ],
        "end": ["The stored statistics are wrong", "recalibrate now, then section A: what made them so"],
    },
    ".zh-CN": {
        "title": "训练模式好、评估模式差：三个问题",
        "yes": "是",
        "no": "否",
        "questions": [
            ["1  在训练数据上，", "评估模式也差吗？"],
            ["2  换用当前批次的统计量", "（关掉 dropout）就好了吗？"],
            ["3  换用精确统计量", "（重新校准后）就好了吗？"],
        ],
        "leave": [
            ["不是批归一化，或者数据不同", "过拟合；预处理不一致", "BN121：统一预处理、自适应、分域统计量"],
            ["不是统计量的问题", "dropout、随机深度、权重损坏", "BN118：没有什么可校准的"],
            ["训练依赖了它的批次", "批次太小、每批只有一类、填充、两种分布", "见 B 节：改变训练时的归一化方式"],
        ],
        "end": ["存储的统计量是错的", "先重新校准，再看 A 节：是什么造成的"],
    },
}  # fmt: skip


def box(x: int, y: int, width: int, lines: list[str], kind: str = "") -> str:
    """A box with its lines, the first one bold."""
    height = 20 * len(lines) + 20
    out = f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
    for row, line in enumerate(lines):
        look = "b" if row == 0 or kind == "q" else "s"
        out += f'<text class="{look}" x="{x + 14}" y="{y + 26 + 20 * row}">{escape(line)}</text>'
    return out


def picture(suffix: str) -> str:
    """The whole drawing."""
    say = TEXTS[suffix]
    shapes = ""
    for row, (question, leave) in enumerate(zip(say["questions"], say["leave"], strict=True)):
        y = 20 + 110 * row
        shapes += box(20, y + 10, 270, question, "q") + box(390, y, 370, leave)
        shapes += f'<path class="e" d="M290 {y + 40}H382"/><text class="s" x="322" y="{y + 32}">{say["no"]}</text>'
        shapes += (
            f'<path class="e" d="M155 {y + 70}V{y + 112}"/><text class="s" x="165" y="{y + 96}">{say["yes"]}</text>'
        )
    shapes += box(20, 356, 740, say["end"])
    tip = '<path d="M0 0L8 4L0 8Z"/>'
    arrow = f'<marker id="a" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto">{tip}</marker>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 436" width="780" role="img">'
    page = '<rect class="page" width="780" height="436" rx="10"/>'
    return f"{head}<title>{say['title']}</title><style>{STYLE}</style><defs>{arrow}</defs>{page}{shapes}</svg>\n"


if __name__ == "__main__":
    for suffix in TEXTS:
        (IMAGES / f"decision{suffix}.svg").write_text(picture(suffix))
