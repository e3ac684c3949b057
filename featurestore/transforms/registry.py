"""Which class a stored definition is of, found by the name of its kind.

Always true: reading a definition runs no code of the store's, and imports this package's own modules
only. A kind of somebody else's is known once the module that defines it was imported.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from featurestore.errors import FormatError
from featurestore.transforms.parameters import decode

if TYPE_CHECKING:
    from featurestore.transforms.base import Transformer

_KINDS: Final[dict[str, type[Transformer]]] = {}

# Where this package's own kinds are, so that reading a store imports only those it uses.
_HOMES: Final = {
    "AsOfAggregate": "asof_aggregate",
    "AsOfJoin": "asof",
    "AsOfWindow": "asof_window",
    "Bucketize": "bucketize",
    "Calendar": "calendar",
    "Cast": "cast",
    "Categorify": "categories",
    "Clip": "clip",
    "CrossSection": "cross_section",
    "CumCount": "counters",
    "Demean": "zscore",
    "Diff": "changes",
    "EWM": "ewm",
    "Embed": "embed",
    "Expanding": "expanding",
    "ExpandingTarget": "expanding_target",
    "Expression": "expression",
    "Forward": "forward",
    "FrequencyEncode": "frequency",
    "FromArray": "from_array",
    "Function": "function",
    "GroupStats": "group_stats",
    "Hash": "hash_buckets",
    "HashCross": "hash_buckets",
    "Impute": "impute",
    "Lag": "lag",
    "ListPad": "list_pad",
    "Log": "log",
    "Lookup": "lookup",
    "MinMax": "min_max",
    "OneHot": "one_hot",
    "PctChange": "changes",
    "PCA": "pca",
    "QuantileBin": "quantile_bin",
    "QuantileTransform": "quantile_transform",
    "Rank": "rank",
    "RobustScale": "robust_scale",
    "Rolling": "window",
    "Standardize": "standardize",
    "TargetEncode": "target_encoding",
    "TextHash": "text_hash",
    "TfIdf": "tf_idf",
    "TimeSince": "counters",
    "Winsorize": "winsorize",
    "ZScore": "zscore",
}


def register(kind: type[Transformer]) -> None:
    """Let definitions name a class."""
    _KINDS[kind.__name__] = kind


def transformer_from_spec(spec: Mapping[str, Any]) -> Transformer:
    """Return the transformer that :meth:`Transformer.spec` described. Runs no code from the store.

    Raises
    ------
    FormatError
        If the kind is unknown or the version is newer than this package's.
    """
    name = str(spec.get("kind"))
    if name not in _KINDS and name in _HOMES:
        importlib.import_module(f"featurestore.transforms.{_HOMES[name]}")
    kind = _KINDS.get(name)
    if kind is None or inspect.isabstract(kind):
        raise FormatError(
            f"the store has a transformer {spec.get('kind')!r} that this package does not know",
            "upgrade featurestore, or import the package that defines it",
        )
    version, params = spec.get("version"), spec.get("params")
    if not isinstance(version, int) or not isinstance(params, Mapping):
        raise FormatError(f"{spec!r} does not describe a {name}", "run verify")
    if version > kind.version:
        raise FormatError(
            f"{name} has version {version} in the store, {kind.version} here",
            "upgrade featurestore",
        )
    transformer = object.__new__(kind)
    for one in dataclasses.fields(kind):
        word = kind.stored_as.get(one.name, one.name)
        value = decode(params[word]) if word in params else _default(one, name)
        object.__setattr__(transformer, one.name, value)
    # Parameters from a store are checked like those from a caller.
    check = getattr(transformer, "__post_init__", None)
    if check is not None:
        try:
            check()
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise FormatError(
                f"the parameters of a stored {name} are none that it can have: {error}",
                "run verify",
            ) from error
    return transformer


def _default(parameter: dataclasses.Field[Any], kind: str) -> Any:
    """Return a parameter that an older store does not have."""
    if parameter.default is not dataclasses.MISSING:
        return parameter.default
    if parameter.default_factory is not dataclasses.MISSING:
        return parameter.default_factory()
    raise FormatError(f"a stored {kind} lacks its parameter {parameter.name!r}", "run verify")
