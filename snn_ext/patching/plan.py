"""Decide what a patch would do: everything is checked here, nothing is changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from snn_ext.dynamics.description import Time
from snn_ext.errors import (
    AlreadyPatchedError,
    NothingMatchedError,
    OptionError,
    ShapeMismatchError,
    ShapeUnknownError,
    UnsupportedSiteError,
)
from snn_ext.methods.options import METHODS, Method
from snn_ext.methods.parts import part_shapes, part_size
from snn_ext.patching import plugins, shapes
from snn_ext.patching.record import record_of
from snn_ext.patching.sites import Patterns, Selection, Site, Wish, scan
from snn_ext.patching.table import Row, render

__all__ = ["Decision", "Plan", "decide", "parse_methods", "refuse_wrapped"]


@dataclass(frozen=True)
class Decision:
    """What will happen at one site.

    Attributes:
        site: the module and its paths.
        methods: method name -> option; empty if the site is left alone.
        features: shape of one sample at one step; None where not needed.
        origin: where `features` came from.
        reason: why the site is left alone, or "already patched".
        omitted: why some of the methods asked for are not among `methods`.
    """

    site: Site
    methods: Mapping[str, Method] = field(default_factory=dict)
    features: tuple[int, ...] | None = None
    origin: str = ""
    reason: str = ""
    omitted: str = ""

    def row(self) -> Row:
        return Row(
            site=self.site.path,
            aliases=len(self.site.paths) - 1,
            module=self.site.kind,
            adapter=self.site.adapter,
            time=self.site.spec.time.value,
            features=self.features,
            origin=self.origin,
            methods=tuple(self.methods),
            parameters={k: part_size(m, self.features) for k, m in self.methods.items()},
            note=self.reason or self.omitted,
        )


@dataclass(frozen=True)
class Plan:
    """The outcome of `snn_ext.plan`: a description; the model is unchanged until `apply`.

    Attributes:
        model: the root.
        decisions: one per site, in the order of the tree.
    """

    model: nn.Module
    decisions: tuple[Decision, ...]
    executor: Callable[[Plan], nn.Module] = field(repr=False)

    def apply(self) -> nn.Module:
        """Carry the plan out, all of it or nothing; returns the patched model."""
        return self.executor(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"model": name, "sites": [one dict per row]}``."""
        rows = [d.row().to_dict() for d in self.decisions]
        return {"model": type(self.model).__name__, "sites": rows}

    def __str__(self) -> str:
        title = f"plan for {type(self.model).__name__}"
        return render(title, [d.row() for d in self.decisions])


def parse_methods(given: Mapping[str, Any]) -> dict[str, list[tuple[Any, Method | None]]]:
    """Keyword values of `patch` -> ordered (pattern, option) rules per method.

    Raises:
        OptionError: an unknown keyword, or a value that is no option.
    """
    rules: dict[str, list[tuple[Any, Method | None]]] = {}
    for name, value in given.items():
        if name not in METHODS:
            close = difflib.get_close_matches(name, [*METHODS, *_KEYWORDS], n=1)
            raise OptionError(
                f"unknown keyword {name!r}.",
                why=f"methods: {', '.join(METHODS)}; other keywords: {', '.join(_KEYWORDS)}",
                do=f"did you mean {close[0]!r}?" if close else "drop it",
            )
        if value is None or value is False:
            continue
        pairs = value.items() if isinstance(value, Mapping) else [("*", value)]
        rules[name] = [(_pattern(name, p), _option(name, v)) for p, v in pairs]
    if not any(option for pairs in rules.values() for _, option in pairs):
        raise NothingMatchedError(
            "no method was asked for.", do=f"pass one, for example {next(iter(METHODS))}=True"
        )
    return rules


_KEYWORDS = ("example_input", "include", "exclude", "where")


def _pattern(name: str, pattern: object) -> object:
    if isinstance(pattern, str | re.Pattern):
        return pattern
    raise OptionError(
        f"{name}={{{pattern!r}: ...}}: the key is not a pattern.",
        do=f"use globs on dotted paths: {name}={{'layer1.*': None, '*': True}}",
    )


def _option(name: str, value: object) -> Method | None:
    if value is None or value is False:
        return None
    if value is True:
        return METHODS[name]()
    if isinstance(value, METHODS[name]):
        return value
    raise OptionError(
        f"{name}={value!r} is not an option of {name}.",
        do=f"pass {name}=True, {name}=snn_ext.{METHODS[name].__name__}(...), or a mapping of globs",
    )


def refuse_wrapped(model: object) -> None:
    """A root that is compiled, scripted or wrapped for parallel training cannot be patched.

    Raises:
        OptionError: not a module. UnsupportedSiteError: a wrapped one.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"{type(model).__name__} is not a torch.nn.Module.", do="pass the network itself")
    for path, module in model.named_modules():
        kind = _wrapper(module)
        if kind:
            raise UnsupportedSiteError(
                f"{type(model).__name__} is {kind}.",
                where=f"{path or '(root)'} ({type(module).__name__})",
                why="the wrapper holds references to the modules as they are now",
                do="use the original model (.module, ._orig_mod): patch it first, then compile or wrap",
            )


def _wrapper(module: nn.Module) -> str | None:
    names = {cls.__name__ for cls in type(module).__mro__}
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted"
    if "OptimizedModule" in names or module._compiled_call_impl is not None:
        return "compiled"
    if isinstance(module, nn.DataParallel):
        return "wrapped in DataParallel"
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "wrapped in DistributedDataParallel"
    return "sharded (FSDP)" if names & {"FullyShardedDataParallel", "FSDPModule"} else None


def decide(
    model: nn.Module,
    methods: Mapping[str, Any],
    *,
    example_input: Any = None,
    include: Patterns = "*",
    exclude: Patterns = (),
    where: Callable[[Site], bool] | None = None,
) -> tuple[Decision, ...]:
    """One decision per site; arguments as for `snn_ext.patch`, raises what that raises."""
    refuse_wrapped(model)
    rules = parse_methods(methods)
    selection = Selection(rules, include, exclude, where)
    sites = scan(model)
    selection.check_patterns(sites)
    wishes = {id(site): selection.wishes(site) for site in sites}
    open_sites = [s for s in sites if _is_open(s, wishes[id(s)])]
    traced = None
    if example_input is not None and open_sites:
        traced = shapes.trace(model, example_input, open_sites)
    decisions = tuple(_decide_site(model, s, wishes[id(s)], traced) for s in sites)
    if not any(d.methods for d in decisions):
        raise _nothing(model, rules, decisions)
    return decisions


def _is_open(site: Site, wishes: Mapping[str, Wish]) -> bool:
    """Whether anything is still to be decided at this site."""
    record = record_of(site.module)
    return bool(wishes) and record is None


def _decide_site(
    model: nn.Module,
    site: Site,
    wishes: Mapping[str, Wish],
    traced: Mapping[int, list[torch.Tensor]] | None,
) -> Decision:
    if not wishes:
        return Decision(site, reason="not selected")
    options = {name: wish.option for name, wish in wishes.items()}
    record = record_of(site.module)
    if record is not None:
        if dict(record.methods) != options:
            raise AlreadyPatchedError(
                f"{site} is already patched, with other options.",
                where=site.path,
                why=f"it has {list(record.methods.values())}, asked for {list(options.values())}",
                do="snn_ext.unpatch(model) first, or leave this site out with exclude=...",
            )
        return Decision(site, options, record.features, record.origin, "already patched")
    inputs = (traced or {}).get(id(site.module), [])
    if traced is not None and not inputs and not any(wish.named for wish in wishes.values()):
        return Decision(site, reason="never called with example_input")
    refused = _refused(site, wishes)
    possible = {name: option for name, option in options.items() if name not in refused}
    reason = "; ".join(dict.fromkeys(refused.values()))
    if not possible:
        return Decision(site, reason=reason)
    features, origin = _features(model, site, possible, inputs)
    return Decision(site, possible, features, origin, omitted=reason)


def _refused(site: Site, wishes: Mapping[str, Wish]) -> dict[str, str]:
    """Method -> why this site cannot take it; an error if the user named the site."""
    refused = {}
    for name, wish in wishes.items():
        reason = _refusal(site, name)
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


def _refusal(site: Site, name: str) -> str | None:
    if site.spec.refusal(name):
        return site.spec.refusal(name)
    if site.spec.time is Time.MERGED:
        return "it sees [T*B, ...]: every step is a sequence of its own, V0 would act in all of them"
    return f"it has an attribute {name!r} of its own" if hasattr(site.module, name) else None


def _features(
    model: nn.Module, site: Site, options: Mapping[str, Method], inputs: list[torch.Tensor]
) -> tuple[tuple[int, ...] | None, str]:
    """Shape of one sample at one step, checked against the options, and where it is known from."""
    seen = {site.spec.time.features(tuple(x.shape)) for x in inputs}
    needs = {option.needs for option in options.values()}
    if seen:
        if len({_shapes(site, options, features) for features in seen}) > 1:
            raise ShapeUnknownError(
                f"{site} is called with different features: {sorted(seen)}.",
                where=", ".join(site.paths),
                why="parameters per neuron or channel cannot serve them all",
                do="use one neuron object per place, or IMP(shape='layer') for this site",
            )
        return max(seen), "traced"
    if needs == {"nothing"}:
        return None, "not needed"
    inferred = shapes.infer(model, site)
    if inferred and ("features" not in needs or None not in inferred):
        features = tuple(n or 1 for n in inferred)
        _shapes(site, options, features)
        return features, "inferred"
    raise ShapeUnknownError(
        f"the number of neurons of {site} is not known.",
        where=str(site),
        why=f"no example_input reached it, and {_hint(inferred)}",
        do="pass example_input=<one batch>, or IMP(shape='channel' | 'layer' | (C, 1, 1))",
    )


def _shapes(site: Site, options: Mapping[str, Method], features: tuple[int, ...]) -> tuple[Any, ...]:
    try:
        return tuple(tuple(part_shapes(option, features)) for option in options.values())
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
