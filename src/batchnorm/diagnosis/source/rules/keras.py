"""BN433: Keras layers switched by `trainable`, which batch norm takes in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import Facts, Said
from batchnorm.diagnosis.source.project import Module
from batchnorm.diagnosis.source.syntax import spelled
from batchnorm.diagnosis.source.trace import Event
from batchnorm.diagnosis.source.values import Const

STANDALONE = re.compile(r"^\s*(?:from|import)\s+keras\b", re.MULTILINE)
KERAS = re.compile(r"^\s*(?:from|import)\s+(?:keras|tensorflow|tf_keras)\b", re.MULTILINE)
LAYERS = re.compile(
    r"BatchNormalization|\b(?:ResNet\d|InceptionV3|InceptionResNet|Xception|MobileNet|DenseNet\d|NASNet|EfficientNet)"
)
FITS = re.compile(r"\.(?:fit|fit_generator|train_on_batch)\(")
OTHERS = re.compile(r"discrim|critic|(^|[._])d(is|_model|_net)?$|gan", re.IGNORECASE)


def trainable(facts: Facts) -> Iterator[Said]:
    """BN433: frozen layers that normalise with the batch, and unfrozen ones whose statistics move."""
    events = [
        (e, e.data["value"].value)
        for e in facts.of("attribute")
        if e.data["name"] == "trainable" and isinstance(e.data["value"], Const) and KERAS.search(e.function.module.text)
    ]
    for event, on in events:
        module = event.function.module
        text = spelled(event.node).split(".trainable")[0]
        if OTHERS.search(text) or not FITS.search(module.text) or not _has_layers(facts, module):
            continue
        if on is False and STANDALONE.search(module.text) and not _again(events, event, True):
            yield Said(
                module,
                event.node,
                f"{text}.trainable = False keeps the weights: before TensorFlow 2, batch norm inside still normalises "
                "with the batch in fit(), and predict() uses the moving statistics",
                "call the frozen part with training=False",
                sure=False,
            )
        elif on is True and _again(events, event, False) and "training=False" not in module.text.replace(" ", ""):
            yield Said(
                module,
                event.node,
                f"{text}.trainable = True lets the moving statistics of batch norm inside move too, from those that "
                "the frozen model was trained with",
                "call the base with training=False, or leave BatchNormalization layers frozen",
                sure=False,
            )


def _again(events: list[tuple[Event, object]], event: Event, value: bool) -> bool:
    """Whether the file sets `trainable` to another value elsewhere."""
    return any(on is value and e.function.module is event.function.module for e, on in events)


def _has_layers(facts: Facts, module: Module) -> bool:
    """Whether the file, or one that it imports, makes batch norm."""
    imported = " ".join(re.findall(r"^\s*(?:from|import)\s.*", module.text, re.MULTILINE)).replace(".", " ").split()
    named = (m for m in facts.modules if m is module or m.name.rsplit(".", 1)[-1] in imported)
    return any(LAYERS.search(m.text) for m in named)
