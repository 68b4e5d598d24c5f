"""Pairs of least total cost: the Hungarian method, for the few dozen boxes of a frame."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["assign"]


def assign(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns, min(N, M) of each, whose entries of `cost` [N, M] have the least sum; all must be finite.

    Shortest augmenting paths with potentials, O(N^2 M) (Jonker and Volgenant, Computing 38, 1987).
    """
    if not np.isfinite(cost).all():
        raise ValueError("cost must be finite; give pairs that must not be a large cost and drop them afterwards")
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    num_rows, num_columns = cost.shape
    row_of = np.full(num_columns, -1)
    row_price, column_price = np.zeros(num_rows), np.zeros(num_columns)
    for row in range(num_rows):
        _augment(cost, row, row_of, row_price, column_price)
    columns = np.flatnonzero(row_of >= 0)
    order = np.argsort(row_of[columns])
    return row_of[columns][order], columns[order]


def _augment(
    cost: NDArray[np.float64],
    row: int,
    row_of: NDArray[np.int64],
    row_price: NDArray[np.float64],
    column_price: NDArray[np.float64],
) -> None:
    """Give `row` a column, moving other rows along the cheapest path of swaps; changes the last three arguments."""
    distance, source = np.full(len(row_of), np.inf), np.full(len(row_of), -1)
    is_done = np.zeros(len(row_of), dtype=bool)
    visited = [row]
    column, reached = -1, 0.0
    while column < 0 or row_of[column] >= 0:
        here = row if column < 0 else row_of[column]
        ahead = reached + cost[here] - row_price[here] - column_price
        is_nearer = ~is_done & (ahead < distance)
        distance[is_nearer], source[is_nearer] = ahead[is_nearer], column
        column = int(np.where(is_done, np.inf, distance).argmin())
        reached, is_done[column] = distance[column], True
        visited.append(row_of[column])
    for index in np.flatnonzero(is_done):
        column_price[index] -= reached - distance[index]
        if row_of[index] >= 0:
            row_price[row_of[index]] += reached - distance[index]
    row_price[row] += reached
    while column >= 0:
        before = source[column]
        row_of[column] = row if before < 0 else row_of[before]
        column = before
