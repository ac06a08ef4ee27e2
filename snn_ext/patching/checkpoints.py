"""Save a patched model with the recipe to patch a fresh one; safetensors and JSON, nothing executable."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from snn_ext.errors import AlreadyPatchedError, CheckpointError, SnnExtError
from snn_ext.methods.options import METHODS, Method
from snn_ext.patching.apply import execute, take_back_all
from snn_ext.patching.arguments import refuse_wrapped
from snn_ext.patching.decision import Decision, Plan
from snn_ext.patching.fold import install_blanks, last_fold, remember_fold
from snn_ext.patching.measured import FoldResult
from snn_ext.patching.recipe import check_recipe
from snn_ext.patching.record import framework_class, inside_itself, patched_modules
from snn_ext.patching.sites import scan
from snn_ext.patching.stepper import device_of, stepper

__all__ = ["FORMAT", "load", "save"]

FORMAT = 1
_KEY = "snn_ext"


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write all tensors of ``model.state_dict()`` and how the model is patched to one file.

    The file is complete or not there at all: it is written under another name and then renamed.

    Raises:
        CheckpointError: a module is inside itself; the state_dict holds something that is not a tensor;
            or the file cannot be written.
        UnsupportedSiteError: the model is compiled or wrapped.
    """
    refuse_wrapped(model)
    _refuse_cycles(model)
    state = model.state_dict()
    foreign = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(
            f"{type(model).__name__} keeps something other than tensors in its state_dict.",
            where=", ".join(foreign[:5]),
            why="safetensors files hold tensors only",
            do="save it with torch.save(model.state_dict(), path)",
        )
    tensors, aliases = _without_aliases(state)
    result = last_fold(model)
    fold = None if result is None else asdict(result)
    config = {"format": FORMAT, "sites": _sites_config(model), "aliases": aliases, "fold": fold}
    target = Path(path)
    try:
        _write(target, serialize(tensors, metadata={_KEY: json.dumps(config)}))
    except OSError as error:
        raise CheckpointError(
            f"{target.name} could not be written.",
            where=str(target),
            why=str(error),
            do="check the folder and the free space; an existing file was left as it was",
        ) from error


def _refuse_cycles(model: nn.Module) -> None:
    path = inside_itself(model)
    if path is not None:
        raise CheckpointError(
            f"{type(model).__name__} has a module that is inside itself.",
            where=path,
            why="torch can neither take nor load the state_dict of such a model",
            do="keep the reference back where it is no submodule: self.parent = (module,)",
        )


def _without_aliases(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, contiguous, and alias key -> kept key for tied ones."""
    kept: dict[tuple[Any, ...], str] = {}
    tensors, aliases = {}, {}
    for key, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr() if tensor.numel() else id(tensor)
        same = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if same in kept and tensor.numel():
            aliases[key] = kept[same]
        else:
            kept[same] = key
            # A copy: safetensors refuses tensors that share memory, for example views.
            tensors[key] = tensor.detach().clone().contiguous()
    return tensors, aliases


def _sites_config(model: nn.Module) -> dict[str, Any]:
    config = {
        path: {
            "module": framework_class(module).__name__,
            "adapter": record.adapter,
            "features": record.features and list(record.features),
            "origin": record.origin,
            "timesteps": record.timesteps,
            "keeps_time": record.keeps_time,
            "clock": record.clock,
            "folded": list(record.folded),
            "methods": {name: option.to_dict() for name, option in record.methods.items()},
        }
        for path, (module, record) in patched_modules(model).items()
    }
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def _write(target: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Patch a fresh model as the saved one was, and load its tensors, strictly.

    A model that is patched in the same way already is only loaded. On any error the model is left
    as it was.

    Args:
        model: a model of the same architecture.
        path: a file written by `save`.

    Returns:
        The model, as `patch` returns it.

    Raises:
        CheckpointError: not such a file, a newer format, or keys, shapes or sites that do not fit; or a
            module of the model is inside itself.
        AlreadyPatchedError: the model is patched otherwise.
    """
    refuse_wrapped(model)
    _refuse_cycles(model)
    config, tensors = _read(Path(path))
    fresh = not patched_modules(model)
    if fresh:
        decisions = _decisions(model, config["sites"], Path(path))
        model = execute(Plan(model, decisions, execute))
    elif _sites_config(model) != config["sites"]:
        raise AlreadyPatchedError(
            f"{type(model).__name__} is patched otherwise than the checkpoint.",
            where=str(path),
            do="load into a fresh model, or into snn_ext.unpatch(model)",
        )
    try:
        if fresh:
            install_blanks(model, {name: entry.get("folded", ()) for name, entry in config["sites"].items()})
        _check_fits(model, tensors, Path(path))
        model.load_state_dict(tensors, strict=True)
    except BaseException:
        if fresh:
            take_back_all(model)
        raise
    remember_fold(model, config["fold"])
    return model


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    def damaged(why: str, do: str = "save it again with snn_ext.save(model, path)") -> CheckpointError:
        return CheckpointError(
            f"{path.name} is not a checkpoint of snn-ext.", where=str(path), why=why, do=do
        )

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(metadata[_KEY])
        version = config["format"]
        if version > FORMAT:
            raise damaged(
                f"it has format {version}, this version of snn-ext reads up to {FORMAT}",
                "upgrade snn-ext",
            )
        check_recipe(config)
        tensors.update({alias: tensors[kept] for alias, kept in config["aliases"].items()})
        fold = config.get("fold")
        config["fold"] = None if fold is None else FoldResult(**fold)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise damaged("there is no such file", "check the path") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(f"{type(error).__name__}: {error}") from error
    return config, tensors


def _decisions(model: nn.Module, sites: dict[str, Any], path: Path) -> tuple[Decision, ...]:
    here = {p: site for site in scan(model) for p in site.paths}
    decisions = []
    for name, entry in sites.items():
        site = here.get(name)
        if site is None or entry["module"] != site.kind or entry["adapter"] != site.adapter:
            raise CheckpointError(
                f"the checkpoint has {entry['module']} at {name or '(root)'}, "
                f"{type(model).__name__} has {site.kind if site else 'no site'} there.",
                where=str(path),
                do="load it into the architecture it was saved from",
            )
        try:
            methods: dict[str, Method] = {
                method: METHODS[method](**options) for method, options in entry["methods"].items()
            }
        except (KeyError, TypeError, SnnExtError) as error:
            raise CheckpointError(
                f"the checkpoint has options at {name or '(root)'} that this version does not know.",
                where=str(path),
                why=str(error),
                do="upgrade snn-ext",
            ) from error
        features = entry["features"]
        decision = Decision(
            site,
            methods,
            tuple(features) if features else None,
            entry["origin"],
            entry.get("timesteps"),
            keeps_time=bool(entry.get("keeps_time")),
            clock=None if entry.get("clock") is None else here.get(entry["clock"]),
        )
        decisions.append(replace(decision, step=stepper(site, decision.done, device_of(model), None)))
    return tuple(decisions)


def _check_fits(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Everything `load_state_dict` would complain about, before it copies anything."""
    own = model.state_dict()
    wrong = [f"missing {key}" for key in own if key not in tensors]
    wrong += [f"unexpected {key}" for key in tensors if key not in own]
    wrong += [
        f"{key} is {list(tensors[key].shape)}, the model has {list(value.shape)}"
        for key, value in own.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    wrong += [  # torch would drop what another kind of number cannot hold
        f"{key} is {tensors[key].dtype}, the model has {value.dtype}"
        for key, value in own.items()
        if key in tensors and not torch.can_cast(tensors[key].dtype, value.dtype)
    ]
    if wrong:
        raise CheckpointError(
            f"the checkpoint does not fit {type(model).__name__}: {len(wrong)} differences.",
            where=str(path),
            why="; ".join(wrong[:5]) + ("; ..." if wrong[5:] else ""),
            do="load it into the architecture it was saved from",
        )
