"""The graph of one run: what a model that cannot be traced does on an example."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from batchnorm.models.example import Example
from batchnorm.models.graph.trace import WholeLayers
from batchnorm.models.objects import all_tensors
from batchnorm.models.state import preserved


def recorded(model: nn.Module, example: Example) -> fx.Graph | None:
    """The graph of a run on the example: torch's modules whole, functions between; the model is left as it was.

    Control flow and defaults are those of the run. None where something keeps it from being recorded.
    """
    recorder = _Recorder(model)
    try:
        with preserved(model), ExitStack() as stack:
            for module, name in recorder.leaves.items():
                stack.callback(module.register_forward_pre_hook(recorder.enter, with_kwargs=True, prepend=True).remove)
                stack.callback(module.register_forward_hook(recorder.leave(name), with_kwargs=True).remove)
            given = example.fresh()
            with recorder:
                output = example.run(model, given=given)
        recorder.graph.output(recorder.nodes_in(list(all_tensors(output))))
        return recorder.graph
    except Exception:
        return None


class _Recorder(TorchFunctionMode):
    """Writes a node for each leaf module's call, and for each torch function between them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        tracer = WholeLayers()
        self.leaves: dict[nn.Module, str] = {}
        for name, module in model.named_modules():
            inside = any(name.startswith(f"{leaf}.") for leaf in self.leaves.values() if leaf)
            # Lists and dicts of modules are torch's, and never called.
            container = isinstance(module, (nn.ModuleList, nn.ModuleDict))
            if name and not inside and not container and tracer.is_leaf_module(module, name):
                self.leaves[module] = name
        held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._paths = {id(value): name for name, value in held}
        self._nodes: dict[int, fx.Node] = {}
        # Tensors are kept, so that no other gets the id of one.
        self._kept: list[Any] = []
        self._depth = 0
        self._inputs: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._depth:
            return func(*args, **kwargs)
        before = self.nodes_in((tuple(args), kwargs))
        output = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(output)):
            self._note(self._call(func, *before), output)
        return output

    def _call(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        name = str(getattr(func, "__name__", func))
        if name == "__get__":  # an attribute such as T
            return self.graph.call_function(getattr, (args[0], func.__self__.__name__))
        if getattr(torch.Tensor, name, None) is func and isinstance(args[0], fx.Node):
            return self.graph.call_method(name, args, kwargs)
        return self.graph.call_function(func, args, kwargs)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A leaf module begins."""
        self._depth += 1
        if self._depth == 1:
            self._inputs.append(self.nodes_in((args, kwargs)))

    def leave(self, name: str) -> Callable[..., None]:
        """A leaf module ends."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._depth -= 1
            if self._depth == 0:
                args, kwargs = self._inputs.pop()
                self._note(self.graph.call_module(name, args, kwargs), output)

        return hook

    def _note(self, node: fx.Node, output: Any) -> None:
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._nodes[id(leaf)] = node
                self._kept.append(leaf)

    def nodes_in(self, value: Any) -> Any:
        """The value with nodes in the place of tensors; one that nothing here made is an input or an attribute."""

        def node(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf if isinstance(leaf, (int, float, str, bool, type(None), slice)) else str(leaf)
            if id(leaf) not in self._nodes:
                path = self._paths.get(id(leaf))
                made = self.graph.get_attr if path is not None else self.graph.placeholder
                self._nodes[id(leaf)] = made(path if path is not None else f"input_{len(self._nodes)}")
                self._kept.append(leaf)
            return self._nodes[id(leaf)]

        return pytree.tree_map(node, value)
