"""The results of stages and heads: their output, and the maps inside that distillation methods compare."""

from __future__ import annotations

from typing import NamedTuple

import jax

Array = jax.Array


class Maps(NamedTuple):
    """The result of a stage, or of a block in it. A stage may also return its output alone.

    Attributes:
      output: [B, H, W, C].
      preactivation: [B, H, W, C], the output before its last ReLU; None where it has none.
      hints: the maps that count as those of this stage in CRD's benchmark; None for the stage's own.
      entry: [B, H', W', C'], the stage's input after a BatchNorm, in front of a ReLU, where a stage begins with these
        two: the preactivation of the stage before. None for any other stage.
      class_token: [B, C], of vision transformers, which the next module takes with the output; None for others.
    """

    output: Array
    preactivation: Array | None = None
    hints: tuple[Maps, ...] | None = None
    entry: Array | None = None
    class_token: Array | None = None

    @property
    def next_input(self) -> Array | tuple[Array, Array]:
        """The input of the next module: the output, or (output, class token) where there is one."""
        return self.output if self.class_token is None else (self.output, self.class_token)


class HeadOutputs(NamedTuple):
    """The result of a head, which may also return the first two as a tuple.

    Attributes:
      logits: [B, num_outputs], at least float32.
      embedding: [B, D], at least float32, the input of the linear layer.
      last_map: [B, H, W, D], whose mean over pixels the linear layer takes.
      entry: as of `Maps`.
    """

    logits: Array
    embedding: Array
    last_map: Array | None = None
    entry: Array | None = None


def as_maps(result: Array | Maps) -> Maps:
    """The result of a stage or block, where that may be its output alone."""
    return result if isinstance(result, Maps) else Maps(result)


def with_preactivations(stages: list[Maps], head: HeadOutputs) -> list[Maps]:
    """The results of all stages, with the preactivations that the module after a stage computes."""
    entries = [*(stage.entry for stage in stages[1:]), head.entry]
    return [
        stage if entry is None else stage._replace(preactivation=entry)
        for stage, entry in zip(stages, entries, strict=True)
    ]


def hints(stages: list[Maps]) -> list[Maps]:
    """The maps that CRD's benchmark compares, of all stages."""
    return [hint for stage in stages for hint in ((stage,) if stage.hints is None else stage.hints)]
