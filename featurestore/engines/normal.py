"""The normal distribution's quantiles, from array operations that NumPy and CuPy both have.

Always true: ``normal_quantile(1 - p) == -normal_quantile(p)`` where both are representable, and each is
right to about 1e-15 relative (Wichura 1988, algorithm AS 241, PPND16).
"""

from __future__ import annotations

from typing import Any, Final

from featurestore.engines.protocol import Array

_CENTRAL: Final = (
    (
        2509.0809287301227,
        33430.57558358813,
        67265.7709270087,
        45921.95393154987,
        13731.69376550946,
        1971.5909503065513,
        133.14166789178438,
        3.3871328727963665,
    ),
    (
        5226.495278852854,
        28729.085735721943,
        39307.89580009271,
        21213.794301586597,
        5394.196021424751,
        687.1870074920579,
        42.31333070160091,
        1.0,
    ),
)
_NEAR: Final = (
    (
        0.0007745450142783414,
        0.022723844989269184,
        0.2417807251774506,
        1.2704582524523684,
        3.6478483247632045,
        5.769497221460691,
        4.630337846156546,
        1.4234371107496835,
    ),
    (
        1.0507500716444169e-09,
        0.0005475938084995345,
        0.015198666563616457,
        0.14810397642748008,
        0.6897673349851,
        1.6763848301838038,
        2.053191626637759,
        1.0,
    ),
)
_FAR: Final = (
    (
        2.0103343992922881e-07,
        2.7115555687434876e-05,
        0.0012426609473880784,
        0.026532189526576124,
        0.29656057182850487,
        1.7848265399172913,
        5.463784911164114,
        6.657904643501103,
    ),
    (
        2.0442631033899397e-15,
        1.421511758316446e-07,
        1.8463183175100548e-05,
        0.0007868691311456133,
        0.014875361290850615,
        0.1369298809227358,
        0.599832206555888,
        1.0,
    ),
)


def normal_quantile(p: Array, xp: Any) -> Array:
    """Return the value below which a share ``p`` of the standard normal distribution lies.

    Parameters
    ----------
    p : Array
        ``float64``, strictly between 0 and 1; NaN gives NaN.

    Examples
    --------
    >>> import numpy as np
    >>> normal_quantile(np.array([0.025, 0.5]), np).round(6).tolist()
    [-1.959964, 0.0]
    """
    from_middle = p - 0.5
    central = 0.180625 - from_middle * from_middle
    tail = xp.sqrt(-xp.log(xp.minimum(p, 1.0 - p)))
    outer = xp.where(tail <= 5.0, _ratio(tail - 1.6, _NEAR), _ratio(tail - 5.0, _FAR))
    inner = from_middle * _ratio(central, _CENTRAL)
    found: Array = xp.where(xp.abs(from_middle) <= 0.425, inner, xp.copysign(outer, from_middle))
    return found


def _ratio(r: Array, factors: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    above, below = (_polynomial(r, one) for one in factors)
    return above / below


def _polynomial(r: Array, factors: tuple[float, ...]) -> Array:
    total = factors[0] * r + factors[1]
    for one in factors[2:]:
        total = total * r + one
    return total
