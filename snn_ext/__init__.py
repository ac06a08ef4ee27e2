"""snn-ext: training methods for spiking networks, put into existing SpikingJelly and snnTorch models.

model = snn_ext.patch(model, imp=True, example_input=x)
crit = snn_ext.loss(model, "tet-s")
"""

from snn_ext import figures, functional, neurons, norms, objectives, surrogates, testing
from snn_ext.analysis.early_exit import (
    BNTTExit,
    ConfidenceExit,
    EarlyExit,
    ExitCalibration,
    calibrate_exit,
    early_exit,
)
from snn_ext.analysis.energy import Energy, LayerEnergy, energy
from snn_ext.dynamics.description import Dynamics, Leak, NeuronSpec, NormSpec, Time
from snn_ext.errors import (
    AdapterError,
    AlreadyPatchedError,
    BackendUnavailableError,
    CheckpointError,
    FoldError,
    MissingDependencyError,
    NothingMatchedError,
    OptionError,
    ReadoutError,
    ShapeMismatchError,
    ShapeUnknownError,
    SnnExtError,
    TimestepError,
    UnsupportedReleaseError,
    UnsupportedSiteError,
)
from snn_ext.kernels.registry import backends, use_backend
from snn_ext.methods.objectives import LTS, SDT, TET, TETS
from snn_ext.methods.options import BNTT, IMP, MPBN, TEBN
from snn_ext.methods.swap import original_class, swap_class
from snn_ext.patching.apply import patch, plan, unpatch
from snn_ext.patching.checkpoints import load, save
from snn_ext.patching.decision import Plan
from snn_ext.patching.distributed import convert_sync_batchnorm
from snn_ext.patching.fold import fold
from snn_ext.patching.hookspecs import AdapterInfo, hookimpl
from snn_ext.patching.measured import FoldResult
from snn_ext.patching.plugins import adapters, comes_from, register
from snn_ext.patching.report import Report, report
from snn_ext.patching.sequence import carried, reset
from snn_ext.patching.sites import Site
from snn_ext.patching.training import Loss, check_optimizer, loss, param_groups

__version__ = "0.1.0"

__all__ = [
    "BNTT",
    "IMP",
    "LTS",
    "MPBN",
    "SDT",
    "TEBN",
    "TET",
    "TETS",
    "AdapterError",
    "AdapterInfo",
    "AlreadyPatchedError",
    "BNTTExit",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfidenceExit",
    "Dynamics",
    "EarlyExit",
    "Energy",
    "ExitCalibration",
    "FoldError",
    "FoldResult",
    "LayerEnergy",
    "Leak",
    "Loss",
    "MissingDependencyError",
    "NeuronSpec",
    "NormSpec",
    "NothingMatchedError",
    "OptionError",
    "Plan",
    "ReadoutError",
    "Report",
    "ShapeMismatchError",
    "ShapeUnknownError",
    "Site",
    "SnnExtError",
    "Time",
    "TimestepError",
    "UnsupportedReleaseError",
    "UnsupportedSiteError",
    "adapters",
    "backends",
    "calibrate_exit",
    "carried",
    "check_optimizer",
    "comes_from",
    "convert_sync_batchnorm",
    "early_exit",
    "energy",
    "figures",
    "fold",
    "functional",
    "hookimpl",
    "load",
    "loss",
    "neurons",
    "norms",
    "objectives",
    "original_class",
    "param_groups",
    "patch",
    "plan",
    "register",
    "report",
    "reset",
    "save",
    "surrogates",
    "swap_class",
    "testing",
    "unpatch",
    "use_backend",
]
