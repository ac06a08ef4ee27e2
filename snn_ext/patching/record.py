"""What a patched module remembers: enough to report it, to undo it, and to load older checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from snn_ext.errors import CheckpointError
from snn_ext.methods.options import Method
from snn_ext.methods.swap import original_class
from snn_ext.patching.measured import FoldResult

__all__ = [
    "Record",
    "expect_older_checkpoints",
    "framework_class",
    "inside_itself",
    "parts_of",
    "patched_modules",
    "record_of",
    "walk",
]

_ATTRIBUTE = "_snn_ext"


@dataclass(frozen=True)
class Record:
    """Attached to a patched module.

    Attributes:
        adapter: name of the adapter that replaced it.
        methods: method name -> option.
        features: shape of one sample at one step, None where it was not needed.
        origin: where `features` came from: "traced", "inferred", "explicit" or "not needed".
        added: names of the new parameters and submodules, relative to the module.
        original: the object that stood there before, if it was not patched in place.
        timesteps: T, None where it was not needed.
        keeps_time: this neuron tells a norm before it which step it is.
        clock: path of the neuron that tells this norm.
        folded: names of the methods folded for inference; there is no way back.
        measured: what the last fold of the model changed, where that was measured.
        backend: what the user wants its steps to be taken by; None for the best.
    """

    adapter: str
    methods: Mapping[str, Method]
    features: tuple[int, ...] | None
    origin: str
    added: tuple[str, ...]
    original: tuple[nn.Module, ...] = ()
    timesteps: int | None = None
    keeps_time: bool = False
    clock: str | None = None
    folded: tuple[str, ...] = ()
    measured: FoldResult | None = None
    backend: str | None = None

    def attach(self, module: nn.Module) -> None:
        # Through __dict__, so that a framework's own __setattr__ is not involved; `original` sits in
        # a tuple, so that it is not registered as a child and adds no keys.
        module.__dict__[_ATTRIBUTE] = self

    @staticmethod
    def detach(module: nn.Module) -> None:
        del module.__dict__[_ATTRIBUTE]


def record_of(module: nn.Module) -> Record | None:
    """The record of a patched module, or None."""
    record = module.__dict__.get(_ATTRIBUTE)
    return record if isinstance(record, Record) else None


def framework_class(module: nn.Module) -> type[nn.Module]:
    """The class the framework gave the module that stood here before any patch."""
    record = record_of(module)
    return type(record.original[0]) if record and record.original else original_class(module)


def walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every (dotted path, module) of `root`, *all* names of shared modules included.

    Unlike ``named_modules(remove_duplicate=False)`` it ends on trees with cycles.
    """
    return ((path, module) for path, module, again in _visit(root) if not again)


def inside_itself(root: nn.Module) -> str | None:
    """Path at which a module of `root` comes again inside itself, or None: torch can then take no
    ``state_dict``."""
    return next((path for path, _, again in _visit(root) if again), None)


def _visit(root: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Path, module, and whether that module is one of those above it, where the visit turns back."""
    stack: list[tuple[str, nn.Module, frozenset[int]]] = [("", root, frozenset())]
    while stack:
        path, module, above = stack.pop()
        again = id(module) in above
        yield path, module, again
        if again:
            continue
        above |= {id(module)}
        for name, child in reversed(module._modules.items()):
            if child is not None:
                stack.append((f"{path}.{name}" if path else name, child, above))


def patched_modules(root: nn.Module) -> dict[str, tuple[nn.Module, Record]]:
    """First path -> (module, record) of everything patched in `root`."""
    found: dict[int, tuple[str, nn.Module, Record]] = {}
    for path, module in walk(root):
        record = record_of(module)
        if record is not None:
            found.setdefault(id(module), (path, module, record))
    return {path: (module, record) for path, module, record in found.values()}


def parts_of(root: nn.Module) -> set[int]:
    """Ids of all modules that snn-ext put into `root`: they are no sites, whatever an adapter says."""
    return {
        id(part)
        for module, record in patched_modules(root).values()
        for name in record.added
        if (added := module._modules.get(name)) is not None
        for part in added.modules()
    }


# --- checkpoints from before the patch ---------------------------------------------------------------


def expect_older_checkpoints(root: nn.Module, *, on: bool) -> None:
    """Let every module above a patched site (sites included) load checkpoints without their new keys."""
    for module in root.modules():
        hooks = module._load_state_dict_pre_hooks
        present = [k for k, h in hooks.items() if getattr(h, "hook", None) is _fill_missing]
        wanted = on and any(record_of(m) for m in module.modules())
        if wanted and not present:
            module.register_load_state_dict_pre_hook(_fill_missing)  # type: ignore[no-untyped-call]
        elif present and not wanted:
            for key in present:
                del hooks[key]


def _fill_missing(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Runs before anything is loaded. The outermost module fills in all missing new keys with the
    current values, so that the hooks below it find nothing to do and there is one warning."""
    keys = _site_keys(module)
    new = {key: tensor for _, added in keys for key, (tensor, _) in added.items()}
    # A wrapper below (activation checkpointing) may already have renamed keys to the true paths.
    loaded = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
    loaded |= {_unwrapped(key) for key in loaded}
    missing = [key for key in new if key not in loaded]
    needed = [key for key in missing if not _is_count(key)]
    # What the module above filled in is the very tensor of the model, not one of the checkpoint.
    given = {key for key in loaded if state_dict.get(prefix + key) is not new.get(key, module)}
    torn = [
        key
        for old, added in keys
        for key in old
        if key not in loaded and not _is_count(key) and not given.isdisjoint([*old, *added])
    ]
    if torn or (needed and len(missing) < len(new)):
        lacking, kind = torn or needed, framework_class(module).__name__
        raise CheckpointError(
            f"the checkpoint lacks {len(lacking)} keys of the patched sites of {kind}.",
            where=_some(prefix + key for key in lacking),
            why="it is incomplete, or was saved from a model patched otherwise; a checkpoint from"
            " before the patch has all of the old keys and none of the new ones",
            do="patch the model as it was when the checkpoint was saved (snn_ext.load does so), load,"
            " then patch the rest",
        )
    if needed:
        sources = {key: source for _, added in keys for key, (_, source) in added.items()}
        taken = {key: sources[key] for key in missing if sources[key] in loaded}
        # a count that the batch norm's own state lacks is torch's to fill in, in all slots alike
        missing = [key for key in missing if key in taken or not (_is_count(key) and sources[key])]
        for key in missing:
            own = new[key]
            # a clone: with assign=True the tensors themselves are taken, and slots must not share them
            state_dict[prefix + key] = state_dict[prefix + taken[key]].clone() if key in taken else own
        kept = [key for key in missing if key not in taken]
        warnings.warn(
            f"the checkpoint is from before the patch: {len(kept)} tensors keep their initial values"
            f" ({_some(prefix + key for key in kept)}), {len(taken)} start as copies of the batch norm's",
            stacklevel=2,
        )


def _site_keys(module: nn.Module) -> list[tuple[list[str], dict[str, tuple[Tensor, str]]]]:
    """Per patched site: its old keys, and its new keys with their tensors, as `module` names them, and
    the old key that a new one may be copied from (a BNTT slot from its batch norm; "" if none).

    Tensors are matched by identity: wrappers change names, and shared sites have several.
    """
    names: dict[int, list[str]] = {}
    state = module.state_dict(keep_vars=True)  # kept: an id is that of another tensor once its own is gone
    for key, tensor in state.items():
        names.setdefault(id(tensor), []).append(key)
    result = []
    for site, record in patched_modules(module).values():
        everything: list[str] = []
        old: dict[str, str] = {}
        new: dict[str, tuple[Tensor, str]] = {}
        for key, tensor in site.state_dict(keep_vars=True).items():
            outer = names.get(id(tensor), [])
            if key.partition(".")[0] in record.added:
                source = old.get(key.rpartition(".")[2], "") if key.startswith("bntt.") else ""
                new.update(dict.fromkeys(outer, (tensor, source)))
            else:
                old.update(dict.fromkeys([key], outer[0]) if outer else {})
                everything.extend(outer)
        result.append((everything, new))
    return result


def _is_count(key: str) -> bool:
    """Whether torch's batch norms fill this key in themselves, where a checkpoint has no version (a plain
    dict, converted weights); elsewhere they report it as missing."""
    return key.rpartition(".")[2] == "num_batches_tracked"


def _unwrapped(key: str) -> str:
    return key.replace("_checkpoint_wrapped_module.", "")


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f", ... ({len(listed)})" if listed[most:] else "")
