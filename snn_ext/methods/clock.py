"""Time in per-step loops: the neuron after a norm knows which step it is, and the norm asks it.

Frameworks tell nobody when a sequence begins; only a neuron's state shows it. So a norm that needs
its step asks the neuron it feeds, and that neuron then checks what was asked against the state it is
really given. A wrong answer is an error, never a wrong slot.
"""

from __future__ import annotations

from torch import Tensor, nn

from snn_ext.errors import TimestepError
from snn_ext.methods.paths import located

__all__ = ["Clock", "ClockedNorm"]


class Clock(nn.Module):
    """Mixin for neurons that keep time; adapters implement `steps_done` and call `tick`."""

    _ext_asked: tuple[tuple[int, int], ...] = ()  # (id of a norm, the step it was told)
    _ext_told: tuple[int, ...] = ()  # ids of the norms that asked for the last step

    def steps_done(self, batch: int) -> int:
        """Steps of the current sequence that lie behind, for a batch of this size; 0 at a start."""
        raise NotImplementedError

    def ask(self, norm: nn.Module, batch: int) -> int:
        """The 0-based step that the next call will be.

        Raises:
            TimestepError: the same norm asked before, and the neuron was not called since: it is not
                the one that the norm feeds, or the model skipped it.
        """
        t = self.steps_done(batch)
        asked = dict(self._ext_asked)
        if t == 0 and any(asked.values()):  # the last sequence ended between a norm and its neuron
            asked = {}
        if id(norm) in asked:
            raise TimestepError(
                "a norm cannot tell which time step it is.",
                where=f"{located(norm)} before {located(self)}",
                why="the neuron after it, which keeps time, was not called in the step before",
                do="call snn_ext.reset(model) if a step was interrupted; else pass example_input to patch, so"
                " that the neuron it feeds is seen, or exclude the norm",
            )
        self._ext_asked = (*asked.items(), (id(norm), t))
        return t

    def tick(self, t: int) -> None:
        """Called at every step with what its state says; checks what norms were told.

        Raises:
            TimestepError: the two differ.
        """
        asked, self._ext_asked = self._ext_asked, ()
        self._ext_told = tuple(norm for norm, _ in asked)
        wrong = [told for _, told in asked if told != t]
        if wrong:
            raise TimestepError(
                f"a norm took this for step {wrong[0] + 1} of a sequence, its neuron for step {t + 1}.",
                where=located(self),
                why="the start of the sequence could not be seen before the norm was called",
                do="call snn_ext.reset(model) before every sequence",
            )

    def forget(self) -> None:
        """Called at a reset: nobody waits for a step any more."""
        self._ext_asked = ()


class ClockedNorm(nn.Module):
    """Mixin for norms that ask a neuron for their time step."""

    _ext_clock: tuple[Clock, ...] = ()
    _ext_last = -1

    def set_clock(self, clock: Clock) -> None:
        """The neuron to ask; in a tuple, so that it does not become a child."""
        self._ext_clock = (clock,)

    def now(self, x: Tensor) -> int:
        """The 0-based step of this call."""
        if not self._ext_clock:
            raise TimestepError(
                "this norm was patched for whole sequences, and is called step by step.",
                where=located(self),
                do="unpatch, then patch the model in the mode it runs in",
            )
        clock, last = self._ext_clock[0], self._ext_last
        alone = id(self) in clock._ext_told  # the clock's last step was the one this norm asked for:
        t = clock.ask(self, len(x))
        if t not in (0, last, last + 1) and not alone:  # then a jump means that states were exchanged
            raise TimestepError(
                f"step {t + 1} of a sequence, but the last step of this norm was {last + 1}.",
                where=f"{located(self)} before {located(clock)}",
                why="it is not called before the neuron that tells it the time, or not at every step",
                do="pass example_input to patch, so that the order of the calls is seen; or exclude the norm",
            )
        self._ext_last = t
        return t
