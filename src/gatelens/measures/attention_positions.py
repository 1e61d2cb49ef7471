"""Which positions of the image side stand out in the attention they get: found from the numbers, not named by hand."""

from __future__ import annotations

import pandas as pd

_Z = 1.959963984540054  # of a 95 % interval


def standing_out(table: pd.DataFrame, least: float = 0.01, times: float = 2.0) -> pd.DataFrame:
    """The image-side positions whose share of cross-modal attention f_j^l exceeds ``least``, and those that stand out.

    NG (section on cross-modal attention) shows every token that takes more than 1 % and names their indices for
    each model by hand. Here any position is listed whose share exceeds ``least`` in the mean over layers or in
    some layer. With few positions that says little: of 66 each has 1.5 % if all are alike. So a position *stands
    out* only if in its highest layer the lower end of its 95 % interval (share − 1.96 se) exceeds both ``least``
    and ``times`` the even share.

    Args:
        table: of :meth:`gatelens.measures.AttentionShare.table`.
        least, times: as above.

    Returns:
        One row a listed position, the highest first: ``kind, index, mean`` (over layers), ``highest`` with ``low,
        high`` and its ``layer``, ``even`` (1 / positions of an example), ``stands_out, n``.
    """
    columns = ["kind", "index", "mean", "highest", "low", "high", "layer", "even", "stands_out", "n"]
    layer = table[table.layer == table.layer.iloc[0]]  # every layer has the same positions
    even = float(layer.n.iloc[0] / layer.held.sum())
    rows = []
    for (kind, index), part in table.groupby(["kind", "index"], sort=False):
        top = part.loc[part.share.idxmax()]
        mean = float(part.share.mean())
        if max(mean, top.share) <= least:
            continue
        low, high = max(0.0, top.share - _Z * top.se), min(1.0, top.share + _Z * top.se)
        above = low > max(least, times * even)
        rows.append((kind, index, mean, top.share, low, high, int(top.layer), even, above, int(top.n)))
    found = pd.DataFrame(rows, columns=columns).astype({"stands_out": bool})
    return found.sort_values("highest", ascending=False, kind="stable").reset_index(drop=True)
