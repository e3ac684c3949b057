"""The function of the golden stores' tensor feature. It must never change: its code is part of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def price_pair(frame: Any) -> Any:
    price = frame["price"].to_numpy()
    return np.stack([price, -price], axis=1).astype(np.float32)
