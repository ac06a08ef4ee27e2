"""Sites: which modules of a model an adapter knows, and which of them an option selects."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from snn_ext.dynamics.description import NeuronSpec, NormSpec
from snn_ext.errors import AdapterError, NothingMatchedError, OptionError
from snn_ext.methods.options import Method
from snn_ext.patching import plugins
from snn_ext.patching.record import framework_class, parts_of, walk

__all__ = ["Pattern", "Patterns", "Selection", "Site", "Wish", "scan"]

Pattern = str | re.Pattern[str]
Patterns = Pattern | Iterable[Pattern]


@dataclass(frozen=True, eq=False)
class Site:
    """One module object that an adapter knows, with *all* its names in the tree.

    Attributes:
        module: the module.
        paths: its dotted paths, first the one ``named_modules`` gives; the root is "".
        spec: what the adapter says about it.
        adapter: name of that adapter.
    """

    module: nn.Module
    paths: tuple[str, ...]
    spec: NeuronSpec | NormSpec
    adapter: str

    @property
    def path(self) -> str:
        """The first path, for people: "(root)" for the root."""
        return self.paths[0] or "(root)"

    @property
    def kind(self) -> str:
        """Name of the framework's own class."""
        return framework_class(self.module).__name__

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})"


def scan(root: nn.Module) -> list[Site]:
    """All sites of `root` in the order of the tree.

    Raises:
        AdapterError: two adapters claim one module, an adapter raised, or the adapter that this
            model needs could not be loaded.
    """
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    parts = parts_of(root)
    for path, module in walk(root):
        if id(module) in parts:
            continue
        modules.setdefault(id(module), module)
        paths.setdefault(id(module), []).append(path)
    sites = []
    for key, module in modules.items():
        claims = _claims(module, paths[key][0], root)
        if len(claims) > 1:
            raise AdapterError(
                f"{len(claims)} adapters claim one module: {', '.join(name for name, _ in claims)}.",
                where=f"{paths[key][0] or '(root)'} ({type(module).__name__})",
                do="uninstall one of them, or leave the module out with exclude=...",
            )
        for name, spec in claims:
            sites.append(Site(module, tuple(paths[key]), spec, name))
    return sites


def _claims(module: nn.Module, path: str, root: nn.Module) -> list[tuple[str, NeuronSpec | NormSpec]]:
    claims = []
    for adapter in plugins.adapters():
        if adapter.error is not None:
            _fail_if_needed(adapter, module, path)
            continue
        spec = plugins.ask(adapter.name, "snn_ext_describe", module=module, path=path, root=root)
        if spec is not None:
            if not isinstance(spec, NeuronSpec | NormSpec):
                raise plugins.answered(adapter.name, "snn_ext_describe", spec, "a NeuronSpec or a NormSpec")
            claims.append((adapter.name, spec))
    return claims


def _fail_if_needed(adapter: plugins.Adapter, module: nn.Module, path: str) -> None:
    """A plugin that could not be loaded matters only to models with modules of its framework; all
    that is known of it is the name of its entry point, by convention the framework's package."""
    if plugins.comes_from(module, adapter.name):
        raise AdapterError(
            f"the adapter {adapter.name!r} could not be loaded.",
            where=f"{path or '(root)'} ({type(module).__name__})",
            why=adapter.state,
            do=f"reinstall or repair the adapter {adapter.name!r}; see snn_ext.adapters()",
        ) from adapter.error


@dataclass(frozen=True)
class Wish:
    """One method for one site, and whether the user named that site or it was caught by "*"."""

    option: Method
    named: bool


class Selection:
    """What the arguments of `patch` select, keeping count of the patterns that matched.

    Args:
        methods: method name -> ordered (pattern, option or None), first match wins.
        include, exclude: fnmatch globs on dotted paths, or compiled patterns (fullmatch).
        where: predicate on sites.
    """

    def __init__(
        self,
        methods: Mapping[str, list[tuple[Pattern, Method | None]]],
        include: Patterns = "*",
        exclude: Patterns = (),
        where: Callable[[Site], bool] | None = None,
    ) -> None:
        self.methods = methods
        self.include = _as_list("include", include)
        self.exclude = _as_list("exclude", exclude)
        self.where = where
        if where is not None and not callable(where):
            raise OptionError(f"where={where!r} is not callable.", do="pass a function Site -> bool")

    def wishes(self, site: Site) -> dict[str, Wish]:
        """Method name -> wish, empty if the site is not selected."""
        included = next((p for p in self.include if matches(p, site)), None)
        if included is None or any(matches(p, site) for p in self.exclude):
            return {}
        if self.where is not None and not self.where(site):
            return {}
        found = {}
        for name, rules in self.methods.items():
            pattern, option = next(((p, o) for p, o in rules if matches(p, site)), ("*", None))
            if option is not None:
                found[name] = Wish(option, named=included != "*" or pattern != "*")
        return found

    def check_patterns(self, sites: list[Site]) -> None:
        """Every pattern must match at least one site.

        Raises:
            NothingMatchedError: naming the pattern and the paths there are.
        """
        given = [("include", p) for p in self.include] + [("exclude", p) for p in self.exclude]
        given += [(name, p) for name, rules in self.methods.items() for p, _ in rules]
        for argument, pattern in given:
            if pattern != "*" and not any(matches(pattern, site) for site in sites):
                text = pattern if isinstance(pattern, str) else pattern.pattern
                raise NothingMatchedError(
                    f"the pattern {text!r} in {argument}= matched none of the {len(sites)} sites.",
                    seen=", ".join(map(str, sites)) or "no site at all",
                    do="correct the pattern or drop it; patterns match whole dotted paths,"
                    " 'layer1.*' but not 'layer1'",
                )


def matches(pattern: Pattern, site: Site) -> bool:
    """Whether a glob or compiled pattern matches any path of `site` as a whole."""
    if isinstance(pattern, re.Pattern):
        return any(pattern.fullmatch(path) for path in site.paths)
    return any(fnmatch.fnmatchcase(path, pattern) for path in site.paths)


def _as_list(argument: str, patterns: Patterns) -> list[Pattern]:
    given = [patterns] if isinstance(patterns, str | re.Pattern) else patterns
    try:
        listed = list(given)
    except TypeError:
        listed = [None]  # type: ignore[list-item]
    if not all(isinstance(p, str | re.Pattern) for p in listed):
        raise OptionError(
            f"{argument}={patterns!r} is not a pattern.",
            do=f"pass a glob such as {argument}='layer1.*', a re.Pattern, or a list of them",
        )
    return listed
