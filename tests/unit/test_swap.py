"""Classes mixed into a module, and taken out again."""

from __future__ import annotations

from torch import nn

from snn_ext.methods.swap import original_class, restore_class, swap_class


class Counts(nn.Module):
    """A mixin whose class attribute is shadowed on the instance once it has something to say."""

    steps = 0

    def step(self) -> None:
        self.steps += 1


def test_what_a_mixin_kept_goes_with_it_and_the_users_attributes_stay() -> None:
    module = nn.Linear(2, 2)
    module.mine = "kept"  # type: ignore[assignment]
    before = dict(module.__dict__)
    swap_class(module, Counts)
    module.step()  # type: ignore[operator]
    assert module.__dict__["steps"] == 1
    assert original_class(module) is nn.Linear
    restore_class(module)
    assert type(module) is nn.Linear
    assert module.__dict__ == before
