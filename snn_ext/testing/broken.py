"""One wrong adapter per check: what it gets wrong is in its docstring, and only its own check may notice.

They are made from the toy framework's correct adapter by breaking one thing. A check that no broken adapter
fails proves nothing; `BROKEN` maps every check of `snn_ext.testing.CHECKS` to the adapter that fails it.
"""

from __future__ import annotations

from snn_ext.testing.broken_neurons import (
    AnewEveryCall,
    ClampedStart,
    DetachedStart,
    FirstBatchOnly,
    FloorIgnored,
    FoldAtEquality,
    IgnoredBias,
    MadeUpThreshold,
    NoisyStart,
    NoReset,
    ResetsEverything,
    ReversedSlots,
    ScaledLoss,
    SequenceOnly,
    StoredStart,
    StrictThreshold,
    SwappedRecordings,
    TrainedStatistics,
    ZeroReset,
)
from snn_ext.testing.broken_structure import (
    AsksForKeys,
    ByAttribute,
    ByDepth,
    ByExactClass,
    ByThreshold,
    CopiedParameter,
    DropsHooks,
    EvalMode,
    ExtraKey,
    ForgetsPatched,
    Lambda,
    LeavesTraces,
    NeedsTrace,
    NewObject,
    OnePath,
    RandomProbe,
    SharedCopy,
    StaysBehind,
    TakenForGranted,
    TidiesLate,
    WideSpikes,
)
from snn_ext.testing.toy import ToyAdapter

__all__ = ["BROKEN"]

BROKEN: dict[str, type[ToyAdapter]] = {
    "dynamics_reproduce_spikes": FloorIgnored,
    "fires_at_threshold_as_described": StrictThreshold,
    "start_above_threshold": ClampedStart,
    "v0_gradient": DetachedStart,
    "imp_rest_is_neutral": NoisyStart,
    "tebn_is_neutral": TrainedStatistics,
    "bntt_with_bias_is_neutral": IgnoredBias,
    "mpbn_follows_its_definition": MadeUpThreshold,
    "fold_is_exact": FoldAtEquality,
    "bntt_knows_its_step": ReversedSlots,
    "steps_equal_sequence": SequenceOnly,
    "v0_acts_once": AnewEveryCall,
    "v0_is_read_in_forward": StoredStart,
    "framework_reset": ZeroReset,
    "snn_ext_reset": NoReset,
    "reset_is_scoped": ResetsEverything,
    "batch_size_may_change": FirstBatchOnly,
    "readout_layout": SwappedRecordings,
    "objective_values": ScaledLoss,
    "claims_only_its_own": ByAttribute,
    "finds_every_neuron": ByThreshold,
    "describe_is_pure": RandomProbe,
    "user_subclass": ByExactClass,
    "tied_sites": OnePath,
    "outside_aliases": NewObject,
    "nested_containers": ByDepth,
    "keys_unchanged": ExtraKey,
    "hooks_survive": DropsHooks,
    "optimiser_identity": CopiedParameter,
    "training_flags": EvalMode,
    "half_precision": WideSpikes,
    "moves_with_the_model": StaysBehind,
    "deepcopy": SharedCopy,
    "pickling": Lambda,
    "patching_twice": ForgetsPatched,
    "unpatch_is_exact": LeavesTraces,
    "older_checkpoint": AsksForKeys,
    "save_and_load": NeedsTrace,
    "atomic_on_failure": TidiesLate,
    "nothing_matched": TakenForGranted,
}
"""Name of a check -> the adapter that fails it, and no other check."""
