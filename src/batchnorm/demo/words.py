"""What the demonstration says, in English and in Chinese."""

from __future__ import annotations

import os
from typing import NamedTuple

from batchnorm.errors import check

LANGUAGES = ("en", "zh")


class Words(NamedTuple):
    """The sentences in the order in which they are printed; what stands in braces is filled in."""

    title: str
    answer: str
    table: str
    columns: tuple[str, str, str, str, str, str]
    mean: str
    var: str
    left: str
    inference: str
    recipe: str
    broken: str
    trained: str
    point: str
    held_out: tuple[str, str, str]
    rows: tuple[str, str, str]
    after: str
    report: str


ENGLISH = Words(
    title="Does batch norm use the batch, or a moving average?",
    answer=(
        "Both, by mode. In training each batch is (1) measured, (2) normalised with its own mean and biased variance, "
        "and (3) the running statistics move a little towards it, with the unbiased variance. At inference (4) the "
        "running statistics normalise, and nothing moves.\n"
        "Never update them by hand: the forward in train mode has done it. momentum, {momentum} here, is the weight of "
        "the NEW batch; in Keras and Flax it is the weight of the old value, {old:g} for the same thing.\n"
    ),
    table="one channel over five training batches",
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
        "A recipe found in tutorials 'updates' the statistics by hand after eval(): "
        "running = m * running + (1 - m) * running.\n"
        "It mixes the value with itself: the largest change is {change:.1e}, rounding. batchnorm.recalibrate(model, "
        "loader) is what measures them anew.\n"
    ),
    broken="A network that is great in train() and bad in eval()",
    trained="Trained for {steps} steps at momentum 0.01 on {samples} digits; {held_out} are held out.\n",
    point=(
        "The same weights: {train:.1%} of the held-out digits are right with the statistics of the batch, "
        "{before:.1%} with the running statistics, and {after:.1%} with the running statistics measured anew by one "
        "line, batchnorm.recalibrate(model, loader). How that is found, and repaired:\n"
    ),
    held_out=("held-out digits", "accuracy", "loss"),
    rows=("train mode (statistics of the batch)", "eval mode, as trained", "eval mode, recalibrated"),
    after="Diagnosis after the repair: {verdict}.",
    report="Report: {path}",
)

CHINESE = Words(
    title="批归一化用的是当前批次，还是滑动平均？",
    answer=(
        "两者都用，取决于模式。训练时：(1) 测量每个批次，(2) 用它自己的均值和有偏方差做归一化，"
        "(3) 让滑动统计量向它移动一点，这里用无偏方差。推理时：(4) 用滑动统计量做归一化，什么都不移动。\n"
        "永远不要手工更新它们：训练模式下的前向计算已经更新过了。momentum（这里是 {momentum}）是新批次的权重；"
        "在 Keras 和 Flax 里它是旧值的权重，同样的设置写作 {old:g}。\n"
    ),
    table="一个通道，五个训练批次",
    columns=("批次", "批次的", "归一化之后", "滑动（之前）", "滑动（之后）", "手算"),
    mean="{batch} 均值",
    var="{batch} 方差",
    left="{batches} 个批次之后，滑动统计量里还剩 (1 - momentum)^{batches} = {left:.1%} 的初值（均值 0，方差 1）。\n",
    inference=(
        "第 4 步，推理：y = (x - running_mean) / sqrt(running_var + eps)。"
        "在一个新批次上，层与这个公式的最大差别：{error:.1e}。\n"
    ),
    recipe=(
        "教程里有一个配方，在 eval() 之后手工“更新”统计量：running = m * running + (1 - m) * running。\n"
        "它把一个值和它自己混合：最大的变化是 {change:.1e}，只是舍入误差。真正重新测量它们的是 "
        "batchnorm.recalibrate(model, loader)。\n"
    ),
    broken="一个 train() 下很好、eval() 下很糟的网络",
    trained="在 {samples} 个手写数字上训练 {steps} 步，momentum 为 0.01；留出 {held_out} 个用于测试。\n",
    point=(
        "同一组权重：用批次的统计量，留出的数字有 {train:.1%} 正确；用滑动统计量，{before:.1%}；"
        "用一行代码 batchnorm.recalibrate(model, loader) 重新测量之后，{after:.1%}。"
        "下面是怎么发现和修复的（报告是英文的）：\n"
    ),
    held_out=("留出的数字", "准确率", "损失"),
    rows=("训练模式（批次的统计量）", "评估模式，训练之后", "评估模式，重新校准之后"),
    after="修复之后的诊断：{verdict}。",
    report="报告：{path}",
)


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
