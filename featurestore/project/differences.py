"""What differs between two definitions of a feature, in lines that people read."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from featurestore.plan.definition import FeatureDefinition

_MOST: Final = 200


def differences(old: FeatureDefinition, new: FeatureDefinition) -> tuple[str, ...]:
    """Return which parameters, or which lines of a function, differ.

    A function's lines are a unified diff of its source. Where that is the same, what it uses is not: a
    constant, a default, or another function of its module.

    Examples
    --------
    >>> import featurestore as fs
    >>> old, new = (
    ...     FeatureDefinition(fs.Rolling("x", window=window, stats=["mean"])) for window in ("7d", "14d")
    ... )
    >>> differences(old, new)
    ('window: "7d" -> "14d"',)
    """
    before, after = _values(old), _values(new)
    lines: list[str] = []
    for name in dict.fromkeys((*before, *after)):
        then, now = before.get(name), after.get(name)
        if then == now:
            continue
        functions = [one["$function"] for one in (then, now) if _is_function(one)]
        if len(functions) == 2:
            lines += _of_functions(*functions)
        else:
            lines.append(f"{name}: {_shown(then)} -> {_shown(now)}")
    return tuple(lines)


def _values(definition: FeatureDefinition) -> dict[str, Any]:
    written: Mapping[str, Any] = definition.to_json()
    spec = written["transformer"]
    parameters = dict(spec.get("params", {}))
    # The types that a function was found to return say nothing that its lines do not say.
    parameters.pop("found", None)
    own = {"kind": spec.get("kind"), "version": spec.get("version")}
    return {**own, **parameters, "fit_on": written["fit_on"]}


def _is_function(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and "$function" in value


def _of_functions(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    if old["source"] == new["source"]:
        if old["code"] == new["code"]:
            return [f"function: moved from {_named(old)} to {_named(new)}"]
        return [f"function {_named(new)}: its lines are the same, what it uses is not"]
    return [
        line.rstrip("\n")
        for line in difflib.unified_diff(
            old["source"].splitlines(),
            new["source"].splitlines(),
            "stored",
            _named(new),
            lineterm="",
        )
    ]


def _named(function: Mapping[str, str]) -> str:
    return f"{function['module']}:{function['qualname']}"


def _shown(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def _text(value: Any) -> str:
    """Return a stored parameter as people write it: expressions as calls, the rest as JSON."""
    if isinstance(value, Mapping) and list(value) == ["$duration"]:
        return _text(value["$duration"])
    for name in ("$expression", "$nodes"):  # a whole expression, and one within
        if isinstance(value, Mapping) and isinstance(value.get(name), list):
            return ".".join(_call(one) for one in value[name])
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(name)}: {_text(one)}" for name, one in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _call(step: Mapping[str, Any]) -> str:
    given = [_text(one) for one in step.get("args", ())]
    given += [f"{name}={_text(one)}" for name, one in step.get("kwargs", {}).items()]
    return f"{step.get('op')}({', '.join(given)})"
