"""Types of the options of terms, with their ranges. The signature of a term declares those of its options."""

from typing import Annotated, Literal

from msgspec import Meta

Temperature = Annotated[float, Meta(ge=1e-3, le=1e4)]
Coefficient = Annotated[float, Meta(ge=0, le=1e6)]  # of a part of a term
Exponent = Annotated[float, Meta(gt=0, le=100)]  # of probabilities
Fraction = Annotated[float, Meta(ge=0, le=1)]
Small = Annotated[float, Meta(gt=0, le=1e-2)]  # keeps a logarithm or a variance away from 0
Variance = Annotated[float, Meta(ge=0.02, le=100)]
Width = Annotated[int, Meta(ge=1, le=2**16)]
Negatives = Annotated[int, Meta(ge=1, le=2**20)]
Grid = Annotated[int, Meta(ge=1, le=64)]  # cells along each side of a map
Regularisation = Annotated[float, Meta(gt=0, le=1e6)]  # of an optimal transport, by the entropy of its plan
Iterations = Annotated[int, Meta(ge=1, le=10**4)]
ClassCost = Literal["cka_map", "cka_logits", "classifier"]  # source of the costs between classes
ClassImages = Annotated[int, Meta(ge=2, le=2**20)]  # of each class
MapsOf = Literal["hints", "features"]  # fields of `Outputs`
Projector = Literal["regressor", "bottleneck"]
Stage = Annotated[int, Meta(ge=1, le=100)]
Branches = tuple[Stage, ...]
