"""One update's gradient and noise on one device, computed without assigning a variable."""

import dataclasses

import keras
import tensorflow as tf

from keras_noisylb.gradients.accumulate import compute, packing
from keras_noisylb.gradients.loss import mask_of, with_masks
from keras_noisylb.gradients.moments import WithMoments, squared_norm
from keras_noisylb.gradients.statistics import STATISTICS, PlainStep
from keras_noisylb.gradients.stored import without_gaps


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of an update.

    Args:
        replicas: R, the number of devices.
        accumulated: k, the number of batches that one update accumulates.
        noisy: how many of these get noise: all, or one (the last) where the noise is added to the
            parameters.
        unit: factor that scales this part's gradients: the loss scale over R.
    """

    replicas: int = 1
    accumulated: int = 1
    noisy: int = 1
    unit: object = 1.0

    def amplitude(self, noise, num_examples):
        """The noise's amplitude in each noisy part; `num_examples` are those of one part."""
        examples = num_examples * (self.accumulated // self.noisy)
        return noise.amplitude(examples, self.replicas * self.noisy, self.unit)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of one batch on one device.

    Args:
        gradients: list aligned with the trainable variables, `None` where there is none.
        noise: list aligned with them if the noise is separate; `None` if it is in the gradients.
        y_pred: outputs.
        extra_loss: the model's own losses as they are reported, or `None`.
        state: list of `(variable, new value)`.
        moments: those of `WithMoments` and the squared norm of the noise, or `None`.
        stored: the statistic for later updates, or `None`.
    """

    gradients: list
    noise: list | None
    y_pred: object
    extra_loss: object
    state: list
    moments: tuple | None
    stored: object


class Tensors:
    """An `Outcome` as a flat list of tensors, which branches and programs can return.

    All functions of one object must return outcomes of the same structure.
    """

    def of(self, function):
        """A function that returns the tensors of the outcome of `function`."""

        def tensors():
            outcome = function()
            masks = keras.tree.map_structure(mask_of, outcome.y_pred)
            self.variables = [variable for variable, _ in outcome.state]
            values = [value for _, value in outcome.state]
            outcome = dataclasses.replace(outcome, state=values)
            leaves = [getattr(outcome, f.name) for f in dataclasses.fields(outcome)], masks
            pack, self.unpack = packing(leaves)
            return pack(leaves)

        return tensors

    def outcome(self, tensors):
        """The `Outcome` whose tensors these are."""
        values, masks = self.unpack(tensors)
        outcome = Outcome(*values)
        state = list(zip(self.variables, outcome.state, strict=True))
        y_pred = with_masks(outcome.y_pred, masks)
        return dataclasses.replace(outcome, state=state, y_pred=y_pred)


@dataclasses.dataclass(frozen=True)
class Step:
    """The computation of one batch on one device.

    Args:
        objective: an `Objective`.
        batch: a `Batch`.
        noise: the noise, or `None` for the plain step.
        parts: `Parts`.
        draws: `Draws`, different for every batch and device.
        noise_draws: `Draws` for the sample.
        num_microbatches: number of microbatches, computed one after the other.
        separate: whether the noise is returned separately, not added to the gradients.
        monitored: whether moments of the per-example gradients are computed.
        stored: the statistic of an earlier update, for noises with `update_every` above 1.
        stored_unit: factor that scaled the gradients of that update.
    """

    objective: object
    batch: object
    noise: object
    parts: Parts
    draws: object
    noise_draws: object
    num_microbatches: int = 1
    separate: bool = False
    monitored: bool = False
    stored: object = None
    stored_unit: object = 1.0

    def run(self, noise_on, fresh):
        """Compute the batch, with the noise if it is on.

        Args:
            noise_on: scalar boolean tensor.
            fresh: scalar boolean tensor: True measures a new statistic, False uses the stored one.

        Returns:
            An `Outcome`.
        """
        if self.noise is None:
            return self._without_noise()
        statistic = STATISTICS.make(self.noise, self.objective.model, self.batch.x)
        tensors = Tensors()
        without = tensors.of(self._without_noise)

        def without_noise():
            if self.stored is None:
                return without()
            with_stored = tensors.of(lambda: self._with_noise(statistic, PlainStep()))
            return tf.cond(noise_on, with_stored, without)

        measured = tensors.of(lambda: self._with_noise(statistic, statistic))
        on = noise_on if self.stored is None else tf.logical_and(noise_on, fresh)
        # A distribution strategy allows no assignment and no reduction in a branch.
        return tensors.outcome(tf.cond(on, measured, without_noise))

    def compiled(self, noise_on, fresh):
        """`run` as a program that XLA compiles for this device."""
        tensors = Tensors()
        program = tensors.of(lambda: self.run(noise_on, fresh))
        return tensors.outcome(tf.function(program, jit_compile=True, autograph=False)())

    def _with_noise(self, statistic, measured):
        computed, found, moments = self._compute(measured)
        amplitude = self.parts.amplitude(self.noise, self.batch.num_examples)
        if self.stored is None:
            used = found
        elif measured is statistic:
            used = without_gaps(found, self.stored)
        else:
            used, amplitude = self.stored, amplitude * self.parts.unit / self.stored_unit
        draws = self.noise_draws.restarted().fold_in(1)
        sample = statistic.arrange(self.noise.sample(used, amplitude, draws))
        pairs = zip(computed.gradients, sample, strict=True)
        noise = [None if g is None or n is None else tf.cast(n, g.dtype) for g, n in pairs]
        stored = None if self.stored is None else used
        return self._outcome(computed, noise, moments, stored)

    def _without_noise(self):
        computed, _, moments = self._compute(PlainStep())
        return self._outcome(computed, [None] * len(computed.gradients), moments, self.stored)

    def _compute(self, statistic):
        if self.monitored:
            statistic = WithMoments(statistic)
        number = max(self.num_microbatches, statistic.num_microbatches)
        # Every branch has the same numbers, whichever are traced or run.
        draws = self.draws and self.draws.restarted().fold_in(0)
        computed = compute(self.objective, self.batch, statistic, draws, number)
        found, moments = computed.statistic if self.monitored else (computed.statistic, None)
        return computed, found, moments

    def _outcome(self, computed, noise, moments, stored):
        gradients = computed.gradients
        if self.monitored:
            known = [n for n in noise if n is not None]
            moments = (*moments, squared_norm(known) if known else tf.constant(0.0))
        if self.separate:
            pairs = zip(gradients, noise, strict=True)
            noise = [None if g is None else tf.zeros_like(g) if n is None else n for g, n in pairs]
        else:
            pairs = zip(gradients, noise, strict=True)
            gradients, noise = [g if n is None else g + n for g, n in pairs], None
        return Outcome(
            gradients,
            noise,
            computed.y_pred,
            computed.extra_loss,
            computed.state,
            moments,
            stored,
        )
