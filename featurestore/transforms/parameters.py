"""Parameters of transformers as JSON, and back: what of a definition is kept in a store.

Always true: ``decode(encode(value))`` equals the value, tuples in place of lists; nothing that is read
runs code. Kinds of values that are no JSON are registered by whoever defines them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from featurestore.errors import DefinitionError
from featurestore.fingerprint import Json
from featurestore.units import Duration

Decoder: TypeAlias = Callable[[Any], Any]
_DECODERS: Final[dict[str, Decoder]] = {"$duration": Duration.parse, "$float": float}
_ENCODERS: Final[list[tuple[type, str, Callable[[Any], Json]]]] = [(Duration, "$duration", str)]


def register_codec(type_: type, tag: str, encoder: Callable[[Any], Json], decoder: Decoder) -> None:
    """Let values of ``type_`` be parameters of transformers, as ``{tag: encoder(value)}``."""
    _ENCODERS.append((type_, tag, encoder))
    _DECODERS[tag] = decoder


def encode(value: Any) -> Json:
    """Return a parameter as JSON; tuples and lists become arrays.

    Raises
    ------
    DefinitionError
        For values that have no JSON form, objects among them.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    for type_, tag, encoder in _ENCODERS:
        if isinstance(value, type_):
            return {tag: encoder(value)}
    if isinstance(value, list | tuple):
        return [encode(one) for one in value]
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) or key.startswith("$") for key in value):
            raise DefinitionError(f"{value!r} cannot be a parameter", "use names as keys")
        return {key: encode(one) for key, one in value.items()}
    raise DefinitionError(
        f"{value!r} of type {type(value).__name__} cannot be a parameter of a stored definition",
        "use numbers, strings, lists, durations, selectors, Narwhals expressions or functions",
    )


def decode(value: Any) -> Any:
    """Return a parameter from its JSON form; arrays become tuples."""
    if isinstance(value, list):
        return tuple(decode(one) for one in value)
    if isinstance(value, Mapping):
        if len(value) == 1:
            tag, inner = next(iter(value.items()))
            if tag in _DECODERS:
                return _DECODERS[tag](inner)
        return {key: decode(one) for key, one in value.items()}
    return value
