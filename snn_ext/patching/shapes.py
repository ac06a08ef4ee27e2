"""Feature shapes of sites: traced with an example input, or inferred from the layer before."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snn_ext.dynamics.description import Time
from snn_ext.errors import ShapeUnknownError
from snn_ext.patching import plugins
from snn_ext.patching.record import walk
from snn_ext.patching.sites import Site

__all__ = ["follows_weights", "infer", "longest", "refuse_lazy", "run", "timesteps", "trace", "untouched"]


def trace(root: nn.Module, example_input: Any, sites: list[Site]) -> dict[int, list[Tensor]]:
    """Run the model once and note the first tensor each site is given (``id(module)`` -> inputs).

    The pass runs without gradients and in the model's own train/eval mode; afterwards buffers,
    neuron states, training flags, hooks and random generators are what they were (`untouched`).

    Args:
        example_input: a tensor; a tuple or list of positional arguments; or a dict of keywords.

    Raises:
        ShapeUnknownError: the model did not run on it, or has lazy modules.
    """
    refuse_lazy(root)
    seen: dict[int, list[Tensor]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.numel()), None)
        if given is not None:
            seen.setdefault(id(module), []).append(given)

    with untouched(root):
        for site in sites:
            site.module.register_forward_pre_hook(note, with_kwargs=True)
            noted = functools.partial(_note_inputs, note, site.module)
            plugins.ask(site.adapter, "snn_ext_watch", module=site.module, note=noted)
        try:
            with torch.no_grad():
                run(root, example_input)
        except Exception as error:
            raise ShapeUnknownError(
                f"{type(root).__name__} did not run on example_input.",
                why=f"{type(error).__name__}: {error}",
                do="pass what you would pass to model(...): a tensor, a tuple of arguments, or a dict of"
                " keyword arguments (with more than one sample where batch norms train)",
            ) from error
    return seen


def refuse_lazy(root: nn.Module) -> None:
    """A model whose parameters have no shape yet cannot be run without changing it.

    Raises:
        ShapeUnknownError: it has lazy modules.
    """
    lazy = [name for name, p in root.named_parameters() if is_lazy(p)]
    if lazy:
        raise ShapeUnknownError(
            f"{type(root).__name__} has parameters without a shape: {', '.join(lazy[:3])}.",
            do="run one forward pass to materialise the lazy modules first",
        )


def _note_inputs(note: Callable[..., None], module: nn.Module, inputs: tuple[Any, ...]) -> None:
    note(module, inputs, {})


def run(root: nn.Module, example_input: Any) -> Any:
    """Call the model with a tensor, a tuple or list of arguments, or a dict of keywords."""
    if isinstance(example_input, Mapping):
        return root(**example_input)
    if isinstance(example_input, tuple | list):
        return root(*example_input)
    return root(example_input)


_RANDOM = threading.RLock()
"""The generators are the process's: what one thread puts back, no other may have saved in between."""


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[None]:
    """Restore all attributes of all modules of `root`, and the random generators, on leaving.

    Works on the plain attributes, so that it needs no knowledge of where a framework keeps states:
    the same objects come back, with the same contents. Parameter *values* are not copied: a forward
    pass does not change them. Threads wait for each other here, since the generators are shared; what a
    thread outside draws in the meantime is drawn again.
    """
    with _RANDOM:
        yield from _untouched(root)


def _untouched(root: nn.Module) -> Iterator[None]:
    modules = {id(m): m for _, m in walk(root)}.values()
    saved = [(m.__dict__, dict(m.__dict__), _contents(m.__dict__)) for m in modules]
    cuda_runs = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if cuda_runs else []
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
        for attributes, before, contents in saved:
            attributes.clear()
            attributes.update(before)
            for container, items, tensors in contents:
                _refill(container, items)
                for tensor, copy in tensors:
                    # Written only if changed, as autograd counts writes (batch norm's own updates of
                    # its statistics are not counted, so the counter cannot tell).
                    if not tensor.is_meta and not torch.equal(tensor, copy):
                        with torch.no_grad():
                            tensor.copy_(copy)


_Tensors = list[tuple[Tensor, Tensor]]


def _contents(attributes: dict[str, Any]) -> list[tuple[Any, Any, _Tensors]]:
    """Shallow copies of the containers among `attributes`, and of the tensors in them."""
    result: list[tuple[Any, Any, _Tensors]] = [(None, None, _copies(attributes.values()))]
    for name, value in attributes.items():
        if isinstance(value, dict):
            tensors = [] if name == "_parameters" else _copies(value.values())
            result.append((value, dict(value), tensors))
        elif isinstance(value, list):
            result.append((value, list(value), _copies(value)))
        elif isinstance(value, set):
            result.append((value, set(value), []))
    return result


def _copies(values: Any) -> _Tensors:
    tensors = [v for v in values if isinstance(v, Tensor)]
    return [(t, t.detach().clone()) for t in tensors]


def _refill(container: Any, items: Any) -> None:
    if container is None:
        return
    container.clear()
    if isinstance(container, list):
        container.extend(items)
    else:
        container.update(items)


def infer(root: nn.Module, site: Site) -> tuple[int | None, ...] | None:
    """Features of `site` as far as the layer registered just before it tells; None if it does not.

    Sizes that the layer does not fix (height, width) are None. Only direct predecessors count, and
    layers in between must keep the channels; V0 is checked against the data at the first forward.
    """
    for path in site.paths:
        for layer in _before(root, path):
            features = _features(layer)
            if features is not None:
                return features
            if not _keeps_channels(layer):
                break
    return None


def follows_weights(root: nn.Module, path: str) -> bool:
    """Whether the layer registered directly before `path` is a convolution or a linear layer."""
    layer = next(_before(root, path), None)
    return isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)


def _before(root: nn.Module, path: str) -> Iterator[nn.Module]:
    """Modules registered before `path` in the same parent, nearest first; plain containers opened."""
    parent_path, _, name = path.rpartition(".")
    if not name:
        return
    parent = root.get_submodule(parent_path)
    children = list(parent._modules)
    for earlier in reversed(children[: children.index(name)]):
        yield from _leaves_backwards(parent._modules[earlier])


def _leaves_backwards(module: nn.Module | None) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in reversed(module):
            yield from _leaves_backwards(child)
    elif module is not None:
        yield module


def timesteps(sites: list[Site], traced: Mapping[int, list[Tensor]] | None) -> int | None:
    """T where the trace shows exactly one number of steps; None otherwise."""
    seen = set()
    for site in sites:
        inputs = (traced or {}).get(id(site.module), [])
        if site.spec.time is Time.LEADING:
            seen |= {len(x) for x in inputs}
        elif site.spec.time is Time.PER_CALL and len(inputs) > 1:
            # a single call may be one step of a loop outside the model
            seen.add(len(inputs))
    return seen.pop() if len(seen) == 1 else None


def longest(sites: list[Site], traced: Mapping[int, list[Tensor]] | None) -> int:
    """The largest T of whole sequences in the trace; 0 where none was seen."""
    whole = [site for site in sites if site.spec.time is Time.LEADING]
    return max((len(x) for site in whole for x in (traced or {}).get(id(site.module), [])), default=0)


def _features(layer: nn.Module) -> tuple[int | None, ...] | None:
    if isinstance(layer, nn.Linear):
        return (layer.out_features,)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return (layer.out_channels, *[None] * len(layer.kernel_size))
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
        return (layer.num_features, *[None] * (2 if isinstance(layer, nn.BatchNorm2d) else 3))
    return None


_CHANNELS_KEPT = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.dropout._DropoutNd,
    nn.Identity,
)


def _keeps_channels(layer: nn.Module) -> bool:
    return isinstance(layer, _CHANNELS_KEPT)
