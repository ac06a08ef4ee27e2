"""Decide what a patch would do: everything is checked here, nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from snn_ext.dynamics.description import NeuronSpec, NormSpec, Time
from snn_ext.errors import (
    AlreadyPatchedError,
    NothingMatchedError,
    OptionError,
    ShapeMismatchError,
    ShapeUnknownError,
    UnsupportedSiteError,
)
from snn_ext.methods.options import BNTT, TEBN, Method, TimeNorm
from snn_ext.methods.parts import Place, part_shapes
from snn_ext.patching import plugins, shapes
from snn_ext.patching.arguments import parse_methods, parse_timesteps, refuse_wrapped
from snn_ext.patching.decision import ALREADY, Decision
from snn_ext.patching.record import record_of
from snn_ext.patching.sites import Patterns, Selection, Site, Wish, scan
from snn_ext.patching.stepper import device_of, parse_backend, stepper

__all__ = ["decide", "taken"]


@dataclass(frozen=True)
class _Context:
    """What all sites of one plan share."""

    model: nn.Module
    traced: Mapping[int, list[torch.Tensor]] | None
    timesteps: int | None
    backend: str | None

    def inputs(self, site: Site) -> list[torch.Tensor]:
        return (self.traced or {}).get(id(site.module), [])


def decide(
    model: nn.Module,
    methods: Mapping[str, Any],
    *,
    timesteps: int | None = None,
    example_input: Any = None,
    include: Patterns = "*",
    exclude: Patterns = (),
    where: Callable[[Site], bool] | None = None,
    backend: str | None = None,
) -> tuple[Decision, ...]:
    """One decision per site; arguments as for `snn_ext.patch`, raises what that raises."""
    refuse_wrapped(model)
    rules = parse_methods(methods)
    given_steps = parse_timesteps(timesteps)
    selection = Selection(rules, include, exclude, where)
    sites = [s for s in scan(model) if isinstance(s.spec, NeuronSpec) or {BNTT.name, TEBN.name} & set(rules)]
    selection.check_patterns(sites)
    wishes = _placed(sites, {id(site): selection.wishes(site) for site in sites})
    traced = None
    if example_input is not None and any(_is_open(s, wishes[id(s)]) for s in sites):
        traced = shapes.trace(model, example_input, sites)
    if given_steps and any(isinstance(w.option, TimeNorm) for ws in wishes.values() for w in ws.values()):
        _check_steps(given_steps, shapes.longest(sites, traced))
    steps = given_steps or shapes.timesteps(sites, traced)
    context = _Context(model, traced, steps, parse_backend(backend))
    named = {key for key, wanted in wishes.items() if any(wish.named for wish in wanted.values())}
    decisions = _with_clocks(context, [_decide_site(context, s, wishes[id(s)]) for s in sites], named)
    if not any(d.methods for d in decisions):
        raise _nothing(model, rules, decisions)
    device = device_of(model)
    asked = context.backend
    return tuple(replace(d, backend=asked, step=stepper(d.site, d.done, device, asked)) for d in decisions)


def _is_open(site: Site, wishes: Mapping[str, Wish]) -> bool:
    """Whether there is something to decide that a trace could help with."""
    return record_of(site.module) is None and any(not _refusal(site, w.option) for w in wishes.values())


def _placed(sites: list[Site], wishes: dict[int, dict[str, Wish]]) -> dict[int, dict[str, Wish]]:
    """Only the wishes that belong at each kind of site; "auto" is decided over the whole selection."""
    has_norms = {
        name: any(name in wishes[id(s)] and isinstance(s.spec, NormSpec) for s in sites)
        for name in (BNTT.name, TEBN.name)
    }

    def belongs(site: Site, option: Method) -> bool:
        at = "neuron"
        if isinstance(option, TimeNorm):
            at = ("norm" if has_norms[option.name] else "neuron") if option.at == "auto" else option.at
        return at == ("norm" if isinstance(site.spec, NormSpec) else "neuron")

    return {
        id(s): {name: wish for name, wish in wishes[id(s)].items() if belongs(s, wish.option)} for s in sites
    }


def _decide_site(context: _Context, site: Site, wishes: Mapping[str, Wish]) -> Decision:
    if not wishes:
        return Decision(site, reason="not selected")
    options = {name: wish.option for name, wish in wishes.items()}
    if {BNTT.name, TEBN.name} <= set(options):
        raise OptionError(
            f"BNTT and TEBN cannot both normalise {site}.",
            where=str(site),
            do="ask for one of them, or give each its own sites with globs",
        )
    refused = _refused(site, wishes)
    possible = {name: option for name, option in options.items() if name not in refused}
    reason = "; ".join(dict.fromkeys(refused.values()))
    record = record_of(site.module)
    if record is not None and (record.methods or possible):
        if dict(record.methods) != possible:
            raise AlreadyPatchedError(
                f"{site} is already patched, with other options.",
                where=site.path,
                why=f"it has {list(record.methods.values())}, asked for {list(possible.values())}",
                do="snn_ext.unpatch(model) first, or leave this site out with exclude=...",
            )
        return Decision(site, possible, record.features, record.origin, record.timesteps, reason=ALREADY)
    named = any(wish.named for wish in wishes.values())
    if context.traced is not None and not context.inputs(site) and not named:
        return Decision(site, reason="never called with example_input")
    if not possible:
        return Decision(site, reason=reason)
    steps = _steps(context, site) if any(isinstance(o, TimeNorm) for o in possible.values()) else None
    features, origin = _features(context, site, possible, steps)
    return Decision(site, possible, features, origin, steps, omitted=reason)


def _with_clocks(context: _Context, decisions: list[Decision], named: set[int]) -> tuple[Decision, ...]:
    """Give every norm that is called step by step the next neuron as its clock.

    "Next" is in the order of the first calls in the trace, else in the order of registration.
    """
    ordered = decisions
    if context.traced is not None:
        calls = {key: i for i, key in enumerate(context.traced)}
        ordered = sorted(
            (d for d in decisions if id(d.site.module) in calls), key=lambda d: calls[id(d.site.module)]
        )
    clocks: dict[int, Site] = {}
    following: Site | None = None
    for decision in reversed(ordered):
        if isinstance(decision.site.spec, NeuronSpec):
            following = None if decision.site.spec.refusal("clock") else decision.site
        elif _needs_clock(decision) and following is not None:
            _check_clock(decision, following)
            clocks[id(decision.site)] = following
    keep = {id(site) for site in clocks.values()}
    return tuple(
        replace(d, clock=clocks[id(d.site)])
        if id(d.site) in clocks
        else _without_clock(d, id(d.site) in named)
        if _needs_clock(d)
        else replace(d, keeps_time=id(d.site) in keep)
        for d in decisions
    )


def _needs_clock(decision: Decision) -> bool:
    spec = decision.site.spec
    asks = isinstance(spec, NormSpec) and spec.time is Time.PER_CALL and not spec.counts
    return asks and bool(decision.methods) and not decision.reason


def _without_clock(decision: Decision, named: bool) -> Decision:
    reason = "no neuron follows it that could tell it which time step it is"
    if named:
        raise UnsupportedSiteError(
            f"{', '.join(decision.methods)} cannot be put into {decision.site.kind}.",
            where=str(decision.site),
            why=f"it is called step by step, and {reason}",
            do="leave this norm out with exclude=, or normalise the neurons' input: at='neuron'",
        )
    return Decision(decision.site, reason=reason)


def _check_clock(decision: Decision, clock: Site) -> None:
    if record_of(clock.module) is not None:
        raise AlreadyPatchedError(
            f"{clock}, which has to keep time for {decision.site}, is already patched.",
            where=clock.path,
            do="snn_ext.unpatch(model), then ask for all methods in one call",
        )


def _refused(site: Site, wishes: Mapping[str, Wish]) -> dict[str, str]:
    """Method -> why this site cannot take it; an error if the user named the site."""
    refused = {}
    for name, wish in wishes.items():
        reason = _refusal(site, wish.option)
        if reason and wish.named:
            raise UnsupportedSiteError(
                f"{name} cannot be put into {site.kind}.",
                where=str(site),
                why=reason,
                do="leave this site out, with exclude= or a mapping to None",
            )
        if reason:
            refused[name] = reason
    return refused


def _refusal(site: Site, option: Method) -> str | None:
    reason = site.spec.refusal(option.name)
    if reason:
        return reason
    if isinstance(site.spec, NeuronSpec) and site.spec.time is Time.MERGED:
        return "it sees [T*B, ...]: every step is a sequence of its own, V0 would act in all of them"
    if isinstance(option, TEBN) and option.stats == "joint" and site.spec.time is Time.PER_CALL:
        return "joint statistics need whole sequences, and it is called step by step: TEBN(stats='step')"
    if any(is_lazy(p) for p in site.module.parameters(recurse=False)):
        return "its parameters have no shape yet; run one forward pass first"
    return taken(site.module, option.name)


def taken(module: nn.Module, name: str) -> str | None:
    """Why nothing can be attached to a module under this name."""
    record = record_of(module)
    if record is not None and name in record.added:
        return None
    try:
        return f"it has an attribute {name!r} of its own" if hasattr(module, name) else None
    except Exception as error:  # a property, or a __getattr__ of the user's
        return f"asking it for an attribute {name!r} raises {type(error).__name__}: {error}"


def _check_steps(given: int, seen: int) -> None:
    if seen > given:
        raise OptionError(
            f"timesteps={given}, but example_input has {seen} time steps.",
            why="BNTT and TEBN have parameters per step, and none for the later ones",
            do=f"pass timesteps={seen}, or an example_input of {given} steps",
        )


def _steps(context: _Context, site: Site) -> int:
    if context.timesteps is not None:
        return context.timesteps
    raise OptionError(
        "the number of time steps is not known.",
        where=str(site),
        why="BNTT and TEBN have parameters per step, and no example shows one number of steps",
        do="pass timesteps=T, or an example_input that runs a whole sequence",
    )


def _features(
    context: _Context, site: Site, options: Mapping[str, Method], steps: int | None
) -> tuple[tuple[int, ...] | None, str]:
    """Shape of one sample at one step, checked against the options, and where it is known from."""
    if isinstance(site.spec, NormSpec):
        return (site.spec.num_features,), "the norm's"
    seen = {site.spec.time.features(tuple(x.shape)) for x in context.inputs(site)}
    needs = {option.needs for option in options.values()}
    if seen:
        if len({_shapes(site, options, features, steps) for features in seen}) > 1:
            raise ShapeUnknownError(
                f"{site} is called with different features: {sorted(seen)}.",
                where=", ".join(site.paths),
                why="parameters per neuron or channel cannot serve them all",
                do="use one neuron object per place, or IMP(shape='layer') for this site",
            )
        return max(seen), "traced"
    if needs == {"nothing"}:
        return None, "not needed"
    inferred = shapes.infer(context.model, site)
    if inferred and ("features" not in needs or None not in inferred):
        features = tuple(n or 1 for n in inferred)
        _shapes(site, options, features, steps)
        return features, "inferred"
    raise ShapeUnknownError(
        f"the number of neurons of {site} is not known.",
        where=str(site),
        why=f"no example_input reached it, and {_hint(inferred)}",
        do="pass example_input=<one batch>, or IMP(shape='channel' | 'layer' | (C, 1, 1))",
    )


def _shapes(
    site: Site, options: Mapping[str, Method], features: tuple[int, ...], steps: int | None
) -> tuple[Any, ...]:
    place = Place(site.module, site.spec, features, steps)
    try:
        return tuple(tuple(part_shapes(option, place)) for option in options.values())
    except ShapeMismatchError as error:
        raise ShapeMismatchError(error.what, where=str(site), why=error.why, do=error.do) from None


def _hint(inferred: tuple[int | None, ...] | None) -> str:
    if inferred is None:
        return "the layer registered before it does not tell its size"
    return f"the layer before it fixes {inferred[0]} channels but not height and width"


def _nothing(
    model: nn.Module, rules: Mapping[str, Any], decisions: tuple[Decision, ...]
) -> NothingMatchedError:
    seen = "; ".join(f"{d.site}: {d.reason}" for d in decisions[:6])
    if not decisions:
        known = ", ".join(f"{a.name} ({a.state})" for a in plugins.adapters()) or "none"
        seen = f"no module that an adapter knows; adapters: {known}"
    asked = ", ".join(f"{name}={[o for _, o in pairs]}" for name, pairs in rules.items())
    return NothingMatchedError(
        f"{', '.join(rules)} matched 0 of {len(decisions)} sites in {type(model).__name__}.",
        seen=seen + (f"; ... {len(decisions) - 6} more" if len(decisions) > 6 else ""),
        why=f"asked for {asked}",
        do="widen include/exclude/where; if there are no sites, install the adapter of the model's"
        " framework, or patch the network itself instead of a wrapper",
    )
