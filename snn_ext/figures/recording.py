"""Membranes and spikes of the neurons in a model, patched or not, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.dynamics.description import NeuronSpec, Time
from snn_ext.errors import NothingMatchedError, OptionError, UnsupportedSiteError
from snn_ext.figures import replay
from snn_ext.figures.replay import Membranes, Planned
from snn_ext.kernels import Call
from snn_ext.methods.neurons import SpikingNeuron
from snn_ext.patching import plugins
from snn_ext.patching.arguments import refuse_wrapped
from snn_ext.patching.record import walk
from snn_ext.patching.sequence import tensors_in
from snn_ext.patching.shapes import refuse_lazy, run, untouched
from snn_ext.patching.sites import Patterns, Selection, Site, matches, scan

__all__ = ["Recording", "SiteRecord", "record"]


@dataclass(frozen=True, eq=False)
class SiteRecord:
    """What one neuron did, T steps of it in the order in which it took them; tensors [T, B, *].

    Attributes:
        path: its first dotted path; `paths` are all.
        kind: name of the framework's class.
        spikes: what it gave, in the model's own numbers (graded spikes are not 0 and 1).
        h: membrane *before* firing: charged by the step's input, before norm and reset.
        normalised: `h` after MPBN, what the neuron decided on; None without (or folded into a threshold).
        v: membrane *after* the step, which the next one starts from: after the reset. Where resets are
            delayed (snnTorch) that of step t acts in step t + 1, and `v` is what the framework returns: `h`.
        threshold: theta, a number where there is one for all neurons.
        calls: how often it was called; a neuron called several times (in a loop, or tied) is recorded on.
    """

    path: str
    paths: tuple[str, ...]
    kind: str
    spikes: Tensor
    h: Tensor
    normalised: Tensor | None
    v: Tensor
    threshold: float | Tensor
    calls: int

    def __str__(self) -> str:
        rate = float((self.spikes != 0).double().mean())
        return f"{self.path or '(root)'} ({self.kind}): {list(self.spikes.shape)}, {rate:.1%} spikes"


@dataclass(frozen=True, eq=False)
class Recording(Mapping[str, SiteRecord]):
    """What `record` returns: path (any of a neuron's) -> `SiteRecord`; it iterates over first paths.

    Attributes:
        output: what the model returned; with ``per_step`` the list of it.
        sites: first path -> record.
        skipped: first path -> why a neuron is not recorded.
    """

    output: Any
    sites: Mapping[str, SiteRecord]
    skipped: Mapping[str, str]

    def __getitem__(self, path: str) -> SiteRecord:
        for site in self.sites.values():
            if path in site.paths:
                return site
        why = self.skipped.get(path, "")
        raise NothingMatchedError(
            f"no neuron called {path!r} was recorded.",
            why=why,
            seen=", ".join(self.sites),
            do="name one of those that were",
        )

    def __contains__(self, path: object) -> bool:
        return any(path in site.paths for site in self.sites.values())

    def __iter__(self) -> Any:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __str__(self) -> str:
        skipped = [f"{path or '(root)'}: not recorded, {why}" for path, why in self.skipped.items()]
        return "\n".join([*map(str, self.sites.values()), *skipped])


def record(
    model: nn.Module, x: Any, *, per_step: bool = False, include: Patterns = "*", exclude: Patterns = ()
) -> Recording:
    """Run a model once and keep the spikes and membranes of its neurons, patched or not.

    The model runs as it always does, fused kernels included, without gradients, in its own train or eval
    mode and from the states it is in (`snn_ext.reset` first for a new sequence): the output is what
    ``model(x)`` would have returned, to the last bit. Afterwards states, statistics, random generators, hooks
    and flags are what they were, whatever happened in between. The membranes are computed again from
    each neuron's own input and equations, and checked: every spike must come out as it was given (on CUDA but
    for rounding next to the threshold), and the last membrane of every call as the neuron holds it.

    Args:
        model: not compiled, not wrapped.
        x: what you would pass to ``model(...)``: a tensor, a tuple of arguments, a dict of keywords.
        per_step: x is a tensor [T, B, ...] and the model takes one step a call: it is called with every x[t].
        include, exclude: globs on dotted paths, compiled patterns, or lists of these. All are kept in
            memory, three or four tensors per neuron layer.

    Returns:
        `Recording`. A neuron whose equations are not known is among its `skipped`, with the reason.

    Raises:
        UnsupportedSiteError: a neuron named by a pattern has no known equations; one does something else
            than its equations; the model is compiled or wrapped.
        NothingMatchedError: no neuron, or a pattern without any match.
        OptionError: x is no sequence for ``per_step``.
        ShapeUnknownError: the model has lazy modules.
    """
    refuse_wrapped(model)
    refuse_lazy(model)
    selection = Selection({}, include, exclude)
    every = _neurons(model)
    selection.check_patterns(every)
    recorders = {
        site.paths[0]: _Recorder(site, named=pattern != "*")
        for site in every
        if (pattern := _chosen_by(selection, site)) is not None
    }
    if not recorders:
        raise NothingMatchedError(
            f"there is nothing to record in {type(model).__name__}.",
            seen=", ".join(map(str, every)) or "no neuron that an adapter knows",
            do="widen include/exclude, or install the adapter of the model's framework",
        )
    with untouched(model), torch.no_grad():
        for recorder in recorders.values():
            recorder.listen()
        output = _run_steps(model, x) if per_step else run(model, x)
        sites = {path: found for path, r in recorders.items() if (found := r.result()) is not None}
    skipped = {path: r.reason for path, r in recorders.items() if path not in sites}
    return Recording(output, sites, skipped)


def _neurons(model: nn.Module) -> list[Site]:
    """Those of frameworks, and our own."""
    found = [site for site in scan(model) if isinstance(site.spec, NeuronSpec)]
    own: dict[int, Site] = {}
    for path, module in walk(model):
        if isinstance(module, SpikingNeuron):
            paths = own[id(module)].paths if id(module) in own else ()
            own[id(module)] = Site(module, (*paths, path), module.spec, "")
    return [*found, *own.values()]


def _chosen_by(selection: Selection, site: Site) -> object:
    if any(matches(pattern, site) for pattern in selection.exclude):
        return None
    return next((pattern for pattern in selection.include if matches(pattern, site)), None)


def _run_steps(model: nn.Module, x: Any) -> list[Any]:
    if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
        what = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise OptionError(
            f"per_step=True needs a sequence [T, B, ...], got {what}.", do="pass torch.stack(steps)"
        )
    return [model(x_t) for x_t in x.unbind(0)]


class _Recorder:
    """Listens to one neuron."""

    def __init__(self, site: Site, *, named: bool) -> None:
        self.site, self.named = site, named
        self.calls: list[tuple[Tensor, Membranes]] = []
        self.threshold: float | Tensor = 1.0
        self.reason = "it was never called (or only by its framework, past all hooks)"
        self._planned: list[Planned | None] = []  # the calls that are under way

    def listen(self) -> None:
        """Hook it, where the hooks of others do not come in between."""
        self.site.module.register_forward_pre_hook(self._before, with_kwargs=True)
        self.site.module.register_forward_hook(self._after, prepend=True)

    def _ask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        module = self.site.module
        if isinstance(module, SpikingNeuron):
            return module.call(args[0])
        call = plugins.ask(self.site.adapter, "snn_ext_call", module=module, args=args, kwargs=kwargs)
        if call is not None and not isinstance(call, Call):
            raise plugins.answered(self.site.adapter, "snn_ext_call", call, "a Call")
        return call

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._ask(args, kwargs)
        if call is None:
            self._refuse("its equations are not known (to its adapter)")
        whole = self.site.spec.time is Time.LEADING
        self._planned.append(None if call is None else replay.plan(module, call, whole=whole))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        planned = self._planned.pop()
        given = next(tensors_in(output), None)
        if planned is None or given is None:
            return
        spikes = given.detach().clone()
        spikes = spikes if planned.whole else spikes.unsqueeze(0)
        now = self._ask(args[:1], {})
        held = None if now is None else now.v
        last = held if held is not None and held.shape == planned.call.x.shape[1:] else None
        if spikes.shape != planned.call.x.shape:
            raise self._unlike(f"it gave {list(spikes.shape)} for an input {list(planned.call.x.shape)}")
        state = planned.call.state_dtype if last is None else last.dtype
        found = replay.replay(module, planned, spikes, state)
        differs = replay.difference(found, last, exact=spikes.device.type == "cpu")
        if differs:
            raise self._unlike(differs)
        self.threshold = _number(planned.call.dynamics.threshold)
        self.calls.append((spikes, found))

    def _unlike(self, why: str) -> UnsupportedSiteError:
        return UnsupportedSiteError(
            "a neuron does something else than its equations: its membranes cannot be told.",
            where=str(self.site),
            why=why,
            do="leave it out with exclude=; if its class is the framework's own, report it to the authors of"
            " the adapter",
        )

    def _refuse(self, reason: str) -> None:
        if self.named:
            raise UnsupportedSiteError(
                f"{self.site.kind} cannot be recorded.",
                where=str(self.site),
                why=reason,
                do="leave it out with exclude=",
            )
        self.reason = reason

    def result(self) -> SiteRecord | None:
        """All calls, one after the other; None where there is nothing to tell."""
        if len({spikes.shape[1:] for spikes, _ in self.calls}) > 1:
            self._refuse("it is called with different shapes")
            return None
        if not self.calls:
            return None

        def joined(part: Callable[[Membranes], Tensor]) -> Tensor:
            return torch.cat([part(found) for _, found in self.calls])

        normed = all(found.normalised is not None for _, found in self.calls)
        return SiteRecord(
            path=self.site.paths[0],
            paths=self.site.paths,
            kind=self.site.kind,
            spikes=torch.cat([spikes for spikes, _ in self.calls]),
            h=joined(lambda m: m.h),
            normalised=joined(lambda m: m.normalised) if normed else None,  # type: ignore[arg-type,return-value]
            v=joined(lambda m: m.v),
            threshold=self.threshold,
            calls=len(self.calls),
        )


def _number(threshold: float | Tensor) -> float | Tensor:
    """A number where that is all it is."""
    if not isinstance(threshold, Tensor):
        return threshold
    return float(threshold) if threshold.numel() == 1 else threshold.detach().clone()
