"""What the demonstration says, in English and in Chinese."""

from __future__ import annotations

import os
from typing import NamedTuple

from rich.cells import cell_len

from batchnorm.errors import check

LANGUAGES = ("en", "zh")


class Words(NamedTuple):
    """The sentences in the order in which they are printed; what stands in braces is filled in."""

    title: str
    answer: str
    broken: str
    trained: str
    held_out: tuple[str, str, str]
    rows: tuple[str, str, str]
    point: str
    found: str
    after: str
    steps: str
    table: str
    columns: tuple[str, str, str, str, str, str]
    mean: str
    var: str
    left: str
    inference: str
    recipe: str
    report: str


ENGLISH = Words(
    title="Does batch norm use the batch, or a moving average?",
    answer=(
        "Both, by mode. In training a layer (1) measures each batch, (2) normalises it with its own mean and biased "
        "variance, and (3) moves the running statistics a little towards it, with the unbiased variance. At inference "
        "(4) it normalises with the running statistics, and nothing moves.\n"
        "Never update them by hand: the forward in train mode has done it. momentum, {momentum} in torch, is the "
        "weight of the NEW batch; Keras and Flax give the weight of the old value, {old:g} for the same thing.\n"
    ),
    broken="A network that is good in train() and bad in eval()",
    trained="Trained for {steps} steps at momentum 0.01 on {samples} digits, tested on {held_out} others:",
    held_out=("the same weights", "accuracy", "loss"),
    rows=("train mode (statistics of the batch)", "eval mode, as trained", "eval mode, recalibrated"),
    point=(
        "Nothing is wrong with the weights. After {steps} steps, {left:.0%} of the initial mean 0 and variance 1 is "
        "still in the running statistics. One line measures them again: batchnorm.recalibrate(model, loader)\n"
    ),
    found="How it is found: print(batchnorm.diagnose(model, loader, metric))",
    after="The same after batchnorm.recalibrate(model, loader): {verdict}.\n",
    steps="The four steps, number by number",
    table="one channel over {batches} training batches",
    columns=("batch", "of the batch", "after batch norm", "running before", "after", "by hand"),
    mean="{batch} mean",
    var="{batch} var",
    left=(
        "After {batches} batches (1 - momentum)^{batches} = {left:.1%} of the initial mean 0 and variance 1 is still "
        "in the running statistics.\n"
    ),
    inference=(
        "Step 4, inference: y = (x - running_mean) / sqrt(running_var + eps). Largest difference between the layer and "
        "this formula on a new batch: {error:.1e}.\n"
    ),
    recipe=(
        "Some tutorials 'update' the statistics by hand after eval(): running = m * running + (1 - m) * running.\n"
        "That mixes a value with itself. The largest change is {change:.1e}: rounding.\n"
    ),
    report="Report: {path}",
)

CHINESE = Words(
    title="批归一化用的是当前批次，还是滑动平均？",
    answer=(
        "两者都用，取决于模式。训练时，层 (1) 测量当前批次，(2) 用它自己的均值和有偏方差做归一化，"
        "(3) 让滑动统计量向它移动一点，这里用无偏方差。推理时，(4) 层用滑动统计量做归一化，不再更新。\n"
        "永远不要手工更新它们：训练模式下的前向计算已经更新过了。momentum（torch 默认 {momentum}）是新批次的权重；"
        "Keras 和 Flax 给出的是旧值的权重，同样的设置写作 {old:g}。\n"
    ),
    broken="一个 train() 下很好、eval() 下很差的网络",
    trained="在 {samples} 个手写数字上训练 {steps} 步，momentum 为 0.01；在另外 {held_out} 个上测试：",
    held_out=("同一组权重", "准确率", "损失"),
    rows=("训练模式（批次的统计量）", "评估模式，训练之后", "评估模式，重新校准之后"),
    point=(
        "权重没有任何问题。{steps} 步之后，滑动统计量里还剩 {left:.0%} 的初值（均值 0，方差 1）。"
        "一行代码就能重新测量：batchnorm.recalibrate(model, loader)\n"
    ),
    found="怎么发现的：print(batchnorm.diagnose(model, loader, metric))（报告是英文的）",
    after="batchnorm.recalibrate(model, loader) 之后再诊断：{verdict}。\n",
    steps="四个步骤，逐个数字",
    table="一个通道，{batches} 个训练批次",
    columns=("批次", "批次的值", "归一化之后", "滑动（之前）", "滑动（之后）", "手算"),
    mean="{batch} 均值",
    var="{batch} 方差",
    left="{batches} 个批次之后，滑动统计量里还剩 (1 - momentum)^{batches} = {left:.1%} 的初值（均值 0，方差 1）。\n",
    inference=(
        "第 4 步，推理：y = (x - running_mean) / sqrt(running_var + eps)。"
        "在一个新批次上，层与这个公式的最大差别：{error:.1e}。\n"
    ),
    recipe=(
        "有些教程在 eval() 之后手工“更新”统计量：running = m * running + (1 - m) * running。\n"
        "这是把一个值和它自己混合。最大的变化是 {change:.1e}，只是舍入误差。\n"
    ),
    report="报告：{path}",
)

_NOT_FIRST = "，。；：、）”！？"


def lines(text: str, width: int) -> str:
    """The text with line breaks at that width; between Chinese characters too, where rich breaks at spaces alone."""
    broken = []
    for paragraph in text.split("\n"):
        line, word = "", ""
        for character in paragraph:
            breakable = character == " " or (cell_len(character) == 2 and character not in _NOT_FIRST)
            if breakable:
                line, word = line + word, ""
            word += character
            if cell_len(line + word) > width and line:
                broken.append(line.rstrip())
                line, word = "", word.lstrip()
        broken.append(line + word)
    return "\n".join(broken)


def words(language: str | None) -> Words:
    """The sentences in a language; None is that of the locale.

    Raises:
        BatchNormError: another language.
    """
    if language is None:
        told = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
        language = "zh" if told.lower().startswith("zh") else "en"
    check(language in LANGUAGES, "--lang", "en or zh", repr(language))
    return CHINESE if language == "zh" else ENGLISH
