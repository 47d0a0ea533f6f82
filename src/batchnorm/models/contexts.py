"""How a model's batch norm layers treat the forwards inside a context: what counts, which bank, one late update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from batchnorm.arguments import a_flag, a_module, a_string, a_tensor, arguments
from batchnorm.errors import BatchNormError
from batchnorm.layers import BatchNorm, Renorm
from batchnorm.layers.held import hold
from batchnorm.layers.masks import MaskInput
from batchnorm.models.find import Model, batch_norm_layers, is_timms


def own_layers(model: nn.Module, what: str) -> dict[str, BatchNorm]:
    """This package's layers of a model by path; an error where there are none, or torch's are among them."""
    found = batch_norm_layers(model)
    stock = [name or "(root)" for name, layer in found.items() if not isinstance(layer, BatchNorm)]
    timms = [name or "(root)" for name, layer in found.items() if is_timms(layer) and not isinstance(layer, BatchNorm)]
    if timms:
        names = f"{', '.join(timms[:3])} {'is' if len(timms) == 1 else 'are'} timm's"
        raise BatchNormError(
            f"model must hold this package's batch norm layers for {what}; {names}: convert it first, with "
            "batchnorm.interop.trainers.timm.convert"
        )
    if stock or not found:
        held = f"{', '.join(stock[:3])} {'is' if len(stock) == 1 else 'are'} torch's" if stock else "there are none"
        raise BatchNormError(f"model must hold this package's batch norm layers for {what}; {held}: convert it first")
    return {name: layer for name, layer in found.items() if isinstance(layer, BatchNorm)}


@arguments(model=a_module, mask=a_tensor, lengths=a_tensor, weights=a_tensor)
@contextmanager
def masked(
    model: Model, mask: Tensor | None = None, *, lengths: Tensor | None = None, weights: Tensor | None = None
) -> Iterator[Model]:
    """Within the context every batch norm layer counts only the data that the mask, lengths or weights select.

    Example:
        >>> import torch, batchnorm
        >>> model = batchnorm.convert(torch.nn.Sequential(torch.nn.Conv1d(2, 3, 1), torch.nn.BatchNorm1d(3)))
        >>> x, lengths = torch.randn(4, 2, 10), torch.tensor([10, 7, 4, 1])
        >>> with batchnorm.masked(model, lengths=lengths):
        ...     y = model(x)
        >>> float(y[3, :, 1:].detach().abs().sum())
        0.0

    A layer that sees another size than the mask's samples it at the nearest positions, as strided
    convolutions and poolings do. A mask given to a layer's own call goes before it.

    Args:
        model: a model with this package's layers.
        mask: boolean `(N, *spatial)` or `(N,)`, True where data counts.
        lengths: integers `(N,)`: the first so many of `L` positions are data. They are turned into
            a mask by the size that each layer sees, so with strided layers give a mask instead.
        weights: non-negative sample weights `(N,)` or `(N, *spatial)`.

    Raises:
        BatchNormError: none or several of the three, a wrong type, a model with torch's layers.
    """
    given = MaskInput(mask, lengths, weights, resize=True)
    if given.kind is None:
        raise BatchNormError("give one of mask, lengths and weights; all were None")
    given.check()
    with _set(own_layers(model, "masked()"), "_given", lambda _: given):
        yield model


@arguments(model=a_module, name=a_string, own_affine=a_flag)
@contextmanager
def bank(model: Model, name: str, *, own_affine: bool = False) -> Iterator[Model]:
    """Within the context every batch norm layer reads and updates the statistics of this bank.

    Example:
        >>> import torch, batchnorm
        >>> model = batchnorm.convert(torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
        >>> with batchnorm.bank(model, "target"):
        ...     _ = model(torch.randn(8, 2) + 5)
        >>> bool((model[0].running_mean == 0).all()), bool((model[0].bank_target_running_mean > 0).all())
        (True, True)

    For domains, clients, widths, truncation levels. A bank is made at its first use, from the
    layer's present statistics; it is saved with the model and appears again when that is loaded.
    `to_stock(model, bank=name)` makes a bank the layer's own statistics.

    Args:
        model: a model with this package's layers.
        name: letters, digits and underscores.
        own_affine: the bank has a weight and bias of its own, which start as copies; parameters made
            here are new, so give them to the optimizer. Decided when the bank is made.

    Raises:
        BatchNormError: another kind of name, a model with torch's layers or without statistics, a
            bank entered inside `accumulate`.
    """
    if not name.isidentifier():
        raise BatchNormError(f"name must be letters, digits and underscores; it was {name!r}")
    layers = own_layers(model, "bank()")
    busy = [path or "(root)" for path, layer in layers.items() if layer.accumulating]
    if busy:
        raise BatchNormError(
            f"bank must be entered before accumulate, which updates one bank; {', '.join(busy[:3])} is accumulating "
            "already"
        )
    bare = [path or "(root)" for path, layer in layers.items() if layer.running_mean is None]
    if bare:
        raise BatchNormError(f"model must track statistics in every layer for bank(); {', '.join(bare)} does not")
    for layer in layers.values():
        if name not in layer.bank_names:
            layer.make_bank(name, own_affine)
    with _set(layers, "active_bank", lambda _: name):
        yield model


@arguments(model=a_module, renorm=a_flag)
@contextmanager
def accumulate(model: Model, *, renorm: bool = False) -> Iterator[Model]:
    """Within the context running statistics do not change; at its end all its batches, pooled, update them once.

    Example:
        >>> import torch, batchnorm
        >>> model, x = batchnorm.BatchNorm1d(2), torch.randn(12, 2)
        >>> with batchnorm.accumulate(model):
        ...     for micro in x.split(4):
        ...         _ = model(micro)
        >>> whole = torch.nn.BatchNorm1d(2)
        >>> _ = whole(x)
        >>> torch.allclose(model.running_var, whole.running_var), int(model.num_batches_tracked)
        (True, 1)

    For gradient accumulation: the update of the big batch, by exact moments. It lands when the
    context ends without an exception; put the optimizer's step after that. Each micro-batch is
    still normalised by itself.

    Args:
        model: a model with this package's layers.
        renorm: also correct each micro-batch towards the running statistics (`Renorm()`), which all
            micro-batches of the context meet unmoved.

    Raises:
        BatchNormError: a model with torch's layers, contexts inside one another, renorm with layers
            whose choices do not go with it.
    """
    layers = {n: layer for n, layer in own_layers(model, "accumulate()").items() if layer.running_mean is not None}
    for name, layer in layers.items():
        if layer.accumulating:
            raise BatchNormError(f"accumulate must not be nested; layer {name!r} is accumulating already")
        if layer.recipe.coupling.looks_back:
            raise BatchNormError(
                f"accumulate cannot pool the batches of layer {name!r}: cross-iteration needs each one's moments"
            )
        if layer.recipe.extent.sequential:
            raise BatchNormError(
                f"accumulate needs one update a batch; layer {name!r} updates after every group: "
                "use Ghost(size, update='pooled')"
            )
        if not layer.recipe.coupling.exact:
            raise BatchNormError(
                f"accumulate cannot pool the batches of layer {name!r}: every backward updates its running averages "
                f"({type(layer.recipe.coupling).__name__})"
            )
    recipes = {name: layer.recipe for name, layer in layers.items()}
    if renorm:
        for name, layer in layers.items():
            if not layer.recipe.coupling.centres:
                raise BatchNormError(
                    f"renorm must be False for layer {name!r}, which divides by second moments and subtracts no mean "
                    f"({layer.recipe.coupling!r})"
                )
        # Built before anything changes: choices that do not go with renorm refuse here.
        recipes = {name: replace(recipe, coupling=Renorm()) for name, recipe in recipes.items()}
    banks = {name: layer.active_bank for name, layer in layers.items()}
    with _set(layers, "recipe", recipes.__getitem__):
        started: list[BatchNorm] = []
        try:
            for layer in layers.values():
                layer.start_accumulating()
                started.append(layer)
            yield model
        except BaseException:
            for layer in started:
                layer.stop_accumulating(land=False)
            raise
        # The bank that the context was entered in, whichever ended first.
        with _set(layers, "active_bank", banks.__getitem__):
            for layer in started:
                layer.stop_accumulating(land=True)


@arguments(model=a_module, train=a_flag)
@contextmanager
def mode(model: Model, train: bool) -> Iterator[Model]:
    """Within the context batch norm layers alone are in train or in eval mode, whatever the model's mode.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout()).train()
        >>> with batchnorm.models.mode(model, train=False):
        ...     (model[0].training, model[1].training)
        (False, True)

    A mode per pass: CrossQ's critic is in train mode for its own loss and in eval mode for the
    actor's. Works on torch's layers as well.

    Raises:
        BatchNormError: train is not True or False.
    """
    with _set(dict(batch_norm_layers(model)), "training", lambda _: train):
        yield model


@contextmanager
def _set(layers: dict[str, Any], attribute: str, value: Callable[[str], Any]) -> Iterator[None]:
    """Set an attribute of each layer, and put back what was there, class defaults included."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(hold(layer, attribute, value(name)))
        yield
