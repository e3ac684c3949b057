"""A stored definition as people read it: parameters as text, expressions as formulas, functions as source.

Works on the JSON that a store has, so that definitions are shown which this process does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

LONGEST: Final = 4000
"""Characters of a parameter or a source that are shown."""
_OPERATORS: Final = {
    "__add__": "+", "__sub__": "-", "__mul__": "*", "__truediv__": "/", "__floordiv__": "//",
    "__mod__": "%", "__pow__": "**", "__gt__": ">", "__ge__": ">=", "__lt__": "<", "__le__": "<=",
    "__eq__": "==", "__ne__": "!=", "__and__": "&", "__or__": "|",
}  # fmt: skip
_REFLECTED: Final = {f"__r{name[2:]}": sign for name, sign in _OPERATORS.items()}


def parameters(definition: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what was said of a transformer: name and value, without those that are null."""
    transformer = definition["transformer"]
    values = dict(transformer.get("params", {}))
    if definition.get("fit_on") is not None:
        values["fit_on"] = definition["fit_on"]
    return tuple(
        (str(name), shortened(_text(value)))
        for name, value in values.items()
        if value not in (None, [], {})
    )


def source(definition: Mapping[str, Any]) -> str:
    """Return the source text of all its functions; ``""`` if there is none."""
    found = _functions(definition["transformer"].get("params", {}))
    return shortened("\n\n".join(str(one.get("source", "")).strip("\n") for one in found))


def shortened(text: str) -> str:
    """Return a text of which only the beginning is kept where it is very long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def _functions(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if isinstance(value.get("$function"), Mapping):
            yield value["$function"]
        else:
            for one in value.values():
                yield from _functions(one)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield from _functions(one)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _of_mapping(value)
    if isinstance(value, Sequence):
        if _are_pairs(value):
            return "\n".join(f"{name} = {_text(one)}" for name, one in value)
        return ", ".join(_text(one) for one in value)
    return _json(value)


def _are_pairs(value: Sequence[Any]) -> bool:
    """Whether these are names with expressions or functions, as an Expression has them."""
    return bool(value) and all(
        isinstance(one, Sequence)
        and len(one) == 2
        and isinstance(one[0], str)
        and isinstance(one[1], Mapping)
        for one in value
    )


def _of_mapping(value: Mapping[str, Any]) -> str:
    function = value.get("$function")
    if isinstance(function, Mapping):
        return f"{function.get('module')}:{function.get('qualname')}"
    nodes = value.get("$expression", value.get("$nodes"))
    if isinstance(nodes, Sequence) and all(isinstance(one, Mapping) for one in nodes):
        return _formula(nodes)
    if len(value) == 1 and next(iter(value)).startswith("$"):  # a duration, a time and the like
        return _text(next(iter(value.values())))
    return _json(value)


def _formula(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Return a chain of calls as one would write it; what is not known, as a call by its name."""
    said = ""
    for node in nodes:
        name = str(node.get("op", "?"))
        arguments = [_argument(one) for one in node.get("args", ())]
        named = node.get("kwargs", {})
        if name == "col":
            said = ", ".join([*arguments, *map(str, named.get("names", ()))])
        elif name in _OPERATORS and len(arguments) == 1:
            said = f"{_grouped(said)} {_OPERATORS[name]} {arguments[0]}"
        elif name in _REFLECTED and len(arguments) == 1:
            said = f"{arguments[0]} {_REFLECTED[name]} {_grouped(said)}"
        else:
            inside = [*arguments, *(f"{key}={_argument(one)}" for key, one in named.items())]
            said = f"{_grouped(said)}.{name}({', '.join(inside)})" if said else (
                f"{name}({', '.join(inside)})"
            )  # fmt: skip
    return said


def _argument(value: Any) -> str:
    if isinstance(value, Mapping) and ("$expression" in value or "$nodes" in value):
        return _grouped(_of_mapping(value))
    return _json(value)


def _grouped(text: str) -> str:
    return f"({text})" if " " in text else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
