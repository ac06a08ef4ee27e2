"""Carry a plan out, all of it or nothing, and take it back exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from snn_ext import kernels
from snn_ext.errors import AdapterError, FoldError, OptionError, SnnExtError
from snn_ext.methods.clock import Clock, ClockedNorm
from snn_ext.methods.fused import FusedNeuron
from snn_ext.methods.parts import Part, attach, detach, new_part
from snn_ext.methods.paths import remember_path
from snn_ext.methods.swap import Swapped, restore_class
from snn_ext.patching import plugins
from snn_ext.patching.arguments import refuse_wrapped
from snn_ext.patching.decision import Decision, Plan
from snn_ext.patching.plan import decide, taken
from snn_ext.patching.record import (
    Record,
    expect_older_checkpoints,
    patched_modules,
    record_of,
    walk,
)
from snn_ext.patching.sites import Patterns, Site
from snn_ext.patching.stepper import device_of

__all__ = ["execute", "patch", "plan", "take_back_all", "unpatch"]


def plan(
    model: nn.Module,
    *,
    imp: Any = None,
    mpbn: Any = None,
    bntt: Any = None,
    tebn: Any = None,
    timesteps: int | None = None,
    example_input: Any = None,
    include: Patterns = "*",
    exclude: Patterns = (),
    where: Callable[[Site], bool] | None = None,
    backend: str | None = None,
    **unknown: Any,
) -> Plan:
    """Decide what `patch` with the same arguments would do; the model is not changed.

    ``print(plan)`` is the table of sites, ``plan.to_dict()`` the same for programs, and
    ``plan.apply()`` carries it out. Arguments and errors: see `patch`.
    """
    decisions = decide(
        model,
        {"imp": imp, "mpbn": mpbn, "bntt": bntt, "tebn": tebn, **unknown},
        timesteps=timesteps,
        example_input=example_input,
        include=include,
        exclude=exclude,
        where=where,
        backend=backend,
    )
    return Plan(model, decisions, execute)


def patch(
    model: nn.Module,
    *,
    imp: Any = None,
    mpbn: Any = None,
    bntt: Any = None,
    tebn: Any = None,
    timesteps: int | None = None,
    example_input: Any = None,
    include: Patterns = "*",
    exclude: Patterns = (),
    where: Callable[[Site], bool] | None = None,
    backend: str | None = None,
    **unknown: Any,
) -> nn.Module:
    """Put methods into the spiking neurons of an existing model, in place.

    Args:
        model: a network of an installed framework (see `adapters`); not compiled, not wrapped.
        imp: learnable initial membrane potential: ``True`` for the defaults, an `IMP`, or an ordered
            mapping glob -> option or None, first match wins:
            ``imp={"head.*": None, "*": IMP(init=0.0)}``.
        mpbn: batch norm on the membrane before firing: ``True``, an `MPBN`, or a mapping as above.
        bntt: batch norm through time: ``True``, a `BNTT`, or a mapping. Converts existing batch norms,
            or normalises the input of neurons where there is none.
        tebn: temporal effective batch norm: ``True``, a `TEBN`, or a mapping.
        timesteps: T, for `bntt` and `tebn`; taken from `example_input` where that shows it.
        example_input: what you would pass to ``model(...)``: a tensor, a tuple of arguments or a dict
            of keywords. Used for one pass without gradients to see the shapes; the model, its states
            and the random generators are left as they were.
        include, exclude: globs on dotted paths, compiled patterns, or lists of these.
        where: predicate on sites, for what globs cannot say.
        backend: what takes the neurons' steps: None for the fastest kernel that computes the same,
            ``"host"``, ``"cupy"``, ``"torch"`` or ``"reference"`` for that one and no other, ``"framework"``
            for the framework's own step. The plan shows it.

    Returns:
        The model: the same object, unless it is a site itself and its adapter returned another.
        Patching again with the same options changes nothing.

    Raises:
        NothingMatchedError: no site, or a pattern without any match.
        UnsupportedSiteError: a site named by a pattern cannot take the method (sites caught only by
            "*" are skipped, with the reason in the plan); or the model is compiled or wrapped.
        ShapeUnknownError, ShapeMismatchError: V0 cannot be sized, or not as asked.
        AlreadyPatchedError: a site has other options already.
        OptionError: an unknown keyword or a value that is no option.
        BackendUnavailableError: the backend asked for cannot run here.
        AdapterError: an adapter is broken, or two claim one module.

    After any of them the model is unchanged.
    """
    return plan(
        model,
        imp=imp,
        mpbn=mpbn,
        bntt=bntt,
        tebn=tebn,
        timesteps=timesteps,
        example_input=example_input,
        include=include,
        exclude=exclude,
        where=where,
        backend=backend,
        **unknown,
    ).apply()


def execute(plan: Plan) -> nn.Module:
    """Apply a plan; any exception, KeyboardInterrupt included, takes back what was done."""
    root = plan.model
    refuse_wrapped(root)
    todo = [d for d in plan.decisions if (d.methods and not d.reason) or d.keeps_time]
    _check_still_true(root, todo)
    made = [_parts(root, decision) for decision in todo]
    undo: list[Callable[[], object]] = []
    try:
        for decision, new_parts in zip(todo, made, strict=True):
            root = _replace(root, decision, new_parts, undo)
        _connect_clocks(root, todo)
        expect_older_checkpoints(root, on=True)
        _tell_adapters(root, [d.site.module for d in todo])
    except BaseException:
        for step in reversed(undo):
            step()
        expect_older_checkpoints(plan.model, on=True)
        for adapter in plugins.usable_adapters():  # they may have been told of the patch already
            with contextlib.suppress(SnnExtError):
                _tell_adapter(adapter, plan.model, [d.site.module for d in todo])
        raise
    return root


def _check_still_true(root: nn.Module, todo: list[Decision]) -> None:
    now: dict[int, list[str]] = {}
    for path, module in walk(root):
        now.setdefault(id(module), []).append(path)
    for decision in todo:
        why = _changed(decision, now)
        if why:
            raise OptionError(
                "the model changed since the plan was made.",
                where=str(decision.site),
                why=why,
                do="make a new plan: snn_ext.plan(model, ...).apply()",
            )


def _changed(decision: Decision, now: Mapping[int, list[str]]) -> str | None:
    """What is no longer as it was at a site; `now` has the paths of every module."""
    site = decision.site
    if record_of(site.module):
        return "the site is patched"
    paths = now.get(id(site.module), [])
    if paths != list(site.paths):
        return f"the module is now at {', '.join(path or '(root)' for path in paths) or 'no place in it'}"
    return next(filter(None, (taken(site.module, name) for name in decision.methods)), None)


def _parts(root: nn.Module, decision: Decision) -> dict[str, Part]:
    device, dtype = _device_and_dtype(root, decision.site.module)
    return {
        name: new_part(option, decision.place, device=device, dtype=dtype)
        for name, option in decision.methods.items()
    }


def _device_and_dtype(root: nn.Module, module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device of the site or else of the model; float32 unless the model is float64 (V0 is a master
    value: half precision models keep it in float32)."""
    device = device_of(module, root)
    floating = {p.dtype for p in root.parameters() if p.is_floating_point()}
    return device, torch.float64 if floating == {torch.float64} else torch.float32


def _replace(
    root: nn.Module, decision: Decision, made: dict[str, Part], undo: list[Callable[[], object]]
) -> nn.Module:
    site, old = decision.site, decision.site.module
    undo.append(lambda: _take_back(old))
    new = plugins.ask(
        site.adapter,
        "snn_ext_replace",
        site=site,
        methods=tuple(decision.methods) + (("clock",) if decision.keeps_time else ()),
        features=decision.features,
    )
    if not isinstance(new, nn.Module):
        raise AdapterError(
            f"the adapter {site.adapter!r} returned {type(new).__name__} for {site.kind}.",
            where=str(site),
            why="snn_ext_replace must return a module",
            do=f"report this to the authors of the adapter {site.adapter!r}; the model is unchanged",
        )
    undo.append(lambda: _take_back(new))  # a new object may share attributes with the old one
    if decision.keeps_time:  # perhaps without any part
        remember_path(new, site.paths[0])
    for name, part in made.items():
        attach(new, decision.methods[name], part, site.paths[0])
    if isinstance(new, FusedNeuron):
        taken = decision.step.name not in ("", kernels.FRAMEWORK)
        new.__dict__["_ext_backend"] = (decision.backend or "auto") if taken else None
    Record(
        adapter=site.adapter,
        methods=dict(decision.methods),
        backend=decision.backend,
        features=decision.features,
        origin=decision.origin,
        added=tuple(made),
        original=() if new is old else (old,),
        timesteps=decision.timesteps,
        keeps_time=decision.keeps_time,
        clock=decision.clock.paths[0] if decision.clock else None,
    ).attach(new)
    if new is old:
        return root
    undo.append(lambda: _install(root, site.paths, old))
    return _install(root, site.paths, new)


def _connect_clocks(root: nn.Module, todo: list[Decision]) -> None:
    for decision in todo:
        if decision.clock is not None:
            norm, clock = (root.get_submodule(s.paths[0]) for s in (decision.site, decision.clock))
            if not isinstance(norm, ClockedNorm) or not isinstance(clock, Clock):
                raise AdapterError(
                    f"the adapter {decision.site.adapter!r} made no clock for {decision.site}.",
                    where=str(decision.clock),
                    why="a norm called step by step must be a ClockedNorm, the neuron after it a Clock",
                    do=f"report this to the authors of the adapter {decision.site.adapter!r}",
                )
            norm.set_clock(clock)


def _install(root: nn.Module, paths: Iterable[str], module: nn.Module) -> nn.Module:
    """Put `module` under all `paths`; returns the root, which is `module` itself for path ""."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        if not name:
            return module
        root.get_submodule(parent)._modules[name] = module
    return root


def _take_back(module: nn.Module) -> None:
    """Remove whatever snn-ext put into a module, as far as it got."""
    detach(module)
    if record_of(module) is not None:
        Record.detach(module)
    if isinstance(module, Swapped):
        restore_class(module)


def _tell_adapters(root: nn.Module, replaced: list[nn.Module]) -> None:
    for adapter in plugins.usable_adapters():
        _tell_adapter(adapter, root, replaced)


def _tell_adapter(adapter: str, root: nn.Module, replaced: list[nn.Module]) -> None:
    plugins.ask(adapter, "snn_ext_changed", root=root, replaced=tuple(replaced))


def unpatch(model: nn.Module) -> nn.Module:
    """Take every patch in `model` back: classes, keys, parameters and aliases as they were.

    If nothing was trained in between, outputs are bit-identical to those before `patch`. A model
    without any patch is returned as it is.

    Returns:
        The model; the original object if the root itself had been replaced by another.

    Raises:
        FoldError: a site is folded.
        UnsupportedSiteError: the model is compiled or wrapped.
    """
    refuse_wrapped(model)
    folded = [path for path, (_, record) in patched_modules(model).items() if record.folded]
    if folded:
        raise FoldError(
            f"{type(model).__name__} is folded, which cannot be undone.",
            where=", ".join(folded[:5]),
            why="the running statistics and affines are gone, only thresholds are left",
            do="load the checkpoint from before snn_ext.fold into a fresh model",
        )
    return take_back_all(model)


def take_back_all(model: nn.Module) -> nn.Module:
    """`unpatch` without its checks."""
    paths: dict[int, list[str]] = {}
    for path, module in walk(model):
        paths.setdefault(id(module), []).append(path)
    root, restored = model, []
    for module, record in patched_modules(model).values():
        _take_back(module)
        original = record.original[0] if record.original else module
        if original is not module:
            original.train(module.training)
            root = _install(root, paths[id(module)], original)
        restored.append(original)
    expect_older_checkpoints(root, on=False)
    _tell_adapters(root, restored)
    return root
