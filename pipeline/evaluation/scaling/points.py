"""The points that a scaling law is fitted on: a run each, from a file of anybody's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import SourceError, in_words, nearest
from data.sources.files import raw_rows
from data.sources.folders import find_files
from data.sources.formats import map_columns
from data.sources.values import RowError, as_number, listed
from pipeline.evaluation.scaling.laws import Floats, Runs

NEEDED = ("parameters", "tokens", "loss")
OPTIONAL = ("non_embedding_parameters", "flops")
"""Read where the first row has them; all rows must have them then."""
FLOPS_PER_PRODUCT = 6.0
"""Of N D, where the FLOPs are not given (Kaplan et al. 2020, section 2.1)."""
MOST_POINTS, MOST_VALUE = 20_000, 1e30
_LEAST_POINTS, LEAST_DISTINCT = 6, 3
"""Five coefficients leave no error with fewer, and a size's two and the floor need three sizes."""


@dataclass(frozen=True)
class Points:
    """Runs by what they cost and came to, arrays of shape (P,).

    Attributes:
        parameters_P: parameters, as they are counted in the file.
        tokens_P: tokens learned.
        losses_P: nats a token, on text kept apart.
        flops_P: as measured or counted; 6 N D where the file has none.
        non_embedding_P: parameters without embeddings; None where the file has none.
        measured: whether the file has the FLOPs.
        ignored: columns of the file that are not read.
    """

    parameters_P: Floats
    tokens_P: Floats
    losses_P: Floats
    flops_P: Floats
    non_embedding_P: Floats | None = None
    measured: bool = False
    ignored: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.losses_P)

    @property
    def runs(self) -> Runs:
        """The runs in logarithms."""
        return Runs(np.log(self.parameters_P), np.log(self.tokens_P), np.log(self.losses_P))

    @property
    def kaplan_runs(self) -> Runs:
        """The same with the parameters that Kaplan's law counts, where they are known."""
        if self.non_embedding_P is None:
            return self.runs
        return self.runs._replace(log_n=np.log(self.non_embedding_P))

    def only(self, keep_P: NDArray[np.bool_]) -> Points:
        """Return some of the points."""
        apart = self.non_embedding_P
        return replace(
            self,
            parameters_P=self.parameters_P[keep_P],
            tokens_P=self.tokens_P[keep_P],
            losses_P=self.losses_P[keep_P],
            flops_P=self.flops_P[keep_P],
            non_embedding_P=None if apart is None else apart[keep_P],
        )

    @property
    def too_few(self) -> str:
        """What they lack for a fit of five coefficients; "" where they suffice."""
        sizes, lengths = len(np.unique(self.parameters_P)), len(np.unique(self.tokens_P))
        if len(self) >= _LEAST_POINTS and min(sizes, lengths) >= LEAST_DISTINCT:
            return ""
        return (
            f"{len(self)} points with {sizes} different parameters and {lengths} different tokens; "
            f"five coefficients need {_LEAST_POINTS} points, {LEAST_DISTINCT} different of each"
        )


def read_points(path: str, columns: Mapping[str, str] | None = None) -> Points:
    """Read the points of a file, or of several that a folder or glob holds.

    Args:
        path: CSV, JSON Lines or another kind of rows, by the suffix.
        columns: our name of a column -> its name in the file.

    Raises:
        SourceError: a row or a column can't be used, or there are too few; names file and line.
    """
    rows: list[list[float]] = []
    names: tuple[str, ...] = NEEDED
    seen: dict[str, None] = {}
    for row in chain.from_iterable(raw_rows(file) for file in find_files(path).files):
        if row.value is None:
            raise SourceError(f"{row.where}: {row.problem}; mend the row or leave it out")
        try:
            content = map_columns(row.value, columns)
            if not rows:
                names = (*NEEDED, *(name for name in OPTIONAL if name in content))
            rows.append([_positive(content, name) for name in names])
        except RowError as error:
            raise SourceError(f"{row.where}: {in_words(error)}") from error
        seen.update(dict.fromkeys(content))
        if len(rows) > MOST_POINTS:
            raise SourceError(
                f"{row.where}: more than {MOST_POINTS:,} points; a point is the end of a run, not "
                "a step of one"
            )
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    of = dict(zip(names, table.T, strict=True))
    products_P = of["parameters"] * of["tokens"]
    points = Points(
        of["parameters"],
        of["tokens"],
        of["loss"],
        flops_P=of.get("flops", FLOPS_PER_PRODUCT * products_P),
        non_embedding_P=of.get("non_embedding_parameters"),
        measured="flops" in of,
        ignored=[name for name in seen if name not in names],
    )
    if points.too_few:
        raise SourceError(f"{path}: {points.too_few}; add runs")
    return points


def _positive(row: Mapping[str, Any], name: str) -> float:
    if name not in row:
        raise RowError(
            f"no column '{name}'; columns: {listed(row)}.{nearest(name, row)} Name the one that "
            f"holds it with --column {name}=COLUMN"
        )
    try:
        number = as_number(row[name], name)
    except RowError as error:
        raise RowError(f"{error}; mend the row or leave it out") from error
    if not 1 / MOST_VALUE < number < MOST_VALUE:
        raise RowError(
            f"column '{name}' holds {number:g}, which is not above 0, or not below "
            f"{MOST_VALUE:g}; mend the row or leave it out"
        )
    return number


def ends_of(values_P: Floats) -> list[float]:
    """Return the least and most of some values."""
    return [float(values_P.min()), float(values_P.max())]


def geometric_mean(values_P: Floats) -> float:
    """Return the geometric mean of some values."""
    return math.exp(float(np.log(values_P).mean()))
