"""Channel vectors in a page: float32 in base64, and no more of them than a page can hold."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 60_000  # channels in a page; four numbers each are 1.3 MB


def pack(layers: Sequence[Sequence[Tensor]], most: int = MOST) -> list[dict[str, Any]]:
    """For each layer its rows `[stored mean, stored std, actual mean, actual std]`, interleaved by channel.

    Where a model has more channels than a page can hold, each layer keeps those that are farthest
    from what is stored (or the first, where nothing was measured), and says so.
    """
    total = sum(rows[0].numel() for rows in layers if rows)
    limit = None if total <= most else max(8, most // max(len(layers), 1))
    return [_pack(rows, limit) for rows in layers]


def _pack(rows: Sequence[Tensor], limit: int | None) -> dict[str, Any]:
    table = torch.stack([row.double() for row in rows]).T if len(rows) and rows[0].numel() else torch.zeros(0, 2)
    index = torch.arange(len(table))
    if limit is not None and len(table) > limit:
        if table.shape[1] == 4:
            far = ((table[:, 2] - table[:, 0]) / (table[:, 1] + 1e-6)).abs().nan_to_num(nan=float("inf"))
            index = far.argsort(descending=True)[:limit].sort().values
        else:
            index = index[:limit]
    kept = table[index].float().contiguous()
    data = base64.b64encode(kept.numpy().astype("<f4").tobytes()).decode()
    numbers = None if len(index) == len(table) else index.tolist()
    return {"width": table.shape[1], "data": data, "numbers": numbers}
