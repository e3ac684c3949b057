"""FunctionRef: a Python function as a value that can be stored, compared and found again.

A stored definition names the function (module and qualified name), shows its source text for people,
and holds the fingerprint of what it computes. Always true: reading a reference imports and runs
nothing; only ``resolve``, called when the function is to be run, may import its module, and what it
finds must have the stored fingerprint.

Trade-off: a function of ``__main__``, of a notebook or inside another function cannot be found by
name. It works as long as the process that defined it lives; afterwards its values stay readable but
cannot be built again until it is defined again.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from featurestore.errors import DefinitionError
from featurestore.fingerprint import Json
from featurestore.transforms.base import register_codec
from featurestore.transforms.code_identity import code_fingerprint, source_of

_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_loaded: Final[dict[tuple[str, str, str], types.FunctionType]] = {}


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A reference to a plain Python function.

    Parameters
    ----------
    module, qualname : str
    source : str
        Its text, for people; it is never run.
    code : str
        Fingerprint of what it computes (see ``code_identity``).
    function : callable, optional
        The function itself, where it is loaded; travels to workers, is never stored.

    Examples
    --------
    >>> def double(df):
    ...     return df["x"] * 2
    >>> ref = FunctionRef.of(double)
    >>> FunctionRef.from_json(ref.to_json()) == ref
    True
    >>> ref.resolve() is double
    True
    """

    module: str
    qualname: str
    source: str = field(compare=False, repr=False)
    code: str
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, function: object) -> FunctionRef:
        """Refer to a function, and remember it for this process.

        Raises
        ------
        DefinitionError
            If it is no plain function with source, or uses what has no fingerprint.
        """
        if not isinstance(function, types.FunctionType):
            raise DefinitionError(
                f"{function!r} is not a plain Python function",
                "wrap the call in a function: def feature(df): return ...",
            )
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise DefinitionError(
                f"{function.__qualname__!r} is a generator or coroutine", "return the values"
            )
        module = function.__module__
        _refuse_library(module, function.__qualname__)
        ref = cls(
            module, function.__qualname__, source_of(function), code_fingerprint(function), function
        )
        _loaded[ref._key] = function
        return ref

    @property
    def _key(self) -> tuple[str, str, str]:
        return self.module, self.qualname, self.code

    @property
    def name(self) -> str:
        """The last part of the qualified name."""
        return self.qualname.rpartition(".")[2]

    def resolve(self) -> Callable[..., Any]:
        """Return the function, importing its module if need be.

        Raises
        ------
        DefinitionError
            If it cannot be found, or computes something else than when it was stored.
        """
        known = self.function or _loaded.get(self._key)
        if known is not None:
            return known
        _refuse_library(self.module, self.qualname)
        function = self._find(load=True)
        if function is None:
            raise DefinitionError(
                f"function {self.module}:{self.qualname} of a stored definition cannot be found, so "
                "its values are readable but cannot be built",
                "define it again in this process, or move it to a module that can be imported",
            )
        found = code_fingerprint(function)
        if found != self.code:
            raise DefinitionError(
                f"function {self.module}:{self.qualname} changed: its code has fingerprint {found}, "
                f"the stored definition {self.code}",
                "add the feature again to use the new code",
            )
        return function

    def current_code(self) -> str | None:
        """Return the fingerprint of the function as this process has it now; None if nobody can tell.

        That is so where it is not loaded, and where its source or what it uses cannot be looked at
        any more (:meth:`unknown_code` says why). Imports nothing. A redefined function, a changed
        constant or helper gives a new fingerprint.
        """
        function = self._loaded_now()
        try:
            return None if function is None else code_fingerprint(function)
        except DefinitionError:  # no reason not to read its values; a build asks unknown_code
            return None

    def unknown_code(self) -> DefinitionError | None:
        """Return why nobody can tell whether the function, which is loaded here, changed.

        That is so if its source is gone, or it uses what has no fingerprint. None otherwise, and
        where it is not loaded: it is looked at when it is imported.
        """
        function = self._loaded_now()
        try:
            if function is not None:
                code_fingerprint(function)
        except DefinitionError as error:
            return DefinitionError(
                f"whether function {self.module}:{self.qualname} is the one its feature was defined "
                "with cannot be told, so its values are readable but cannot be built: "
                f"{error.problem}",
                "put its source back, or define the feature again with replace=True",
            )
        return None

    def _loaded_now(self) -> types.FunctionType | None:
        function = self._find(load=False) or self.function or _loaded.get(self._key)
        return function if isinstance(function, types.FunctionType) else None

    def _find(self, *, load: bool) -> types.FunctionType | None:
        if "<" in self.qualname:
            return None
        if load and self.module != "__main__":
            try:
                importlib.import_module(self.module)
            except ImportError as error:
                raise DefinitionError(
                    f"module {self.module!r} of function {self.qualname!r} cannot be imported: {error}",
                    "put it on the Python path, or define the function again in this process",
                ) from error
        found: Any = sys.modules.get(self.module)
        for part in self.qualname.split("."):
            found = getattr(found, part, None)
        # A decorator may have put an object in the function's place.
        while not isinstance(found, types.FunctionType) and hasattr(found, "__wrapped__"):
            found = found.__wrapped__
        return found if isinstance(found, types.FunctionType) else None

    def to_json(self) -> Json:
        return {
            "module": self.module,
            "qualname": self.qualname,
            "source": self.source,
            "code": self.code,
        }

    @classmethod
    def from_json(cls, value: Any) -> FunctionRef:
        """Read a reference; looks for nothing.

        Raises
        ------
        DefinitionError
            If it is not one.
        """
        parts = [
            value.get(name) if isinstance(value, Mapping) else None
            for name in ("module", "qualname", "source", "code")
        ]
        if not all(isinstance(part, str) for part in parts):
            raise DefinitionError(f"{value!r} is not a stored function reference")
        module, qualname, source, code = (str(part) for part in parts)
        plain = qualname.replace(".<locals>", "")
        if not (_DOTTED.fullmatch(module) and _DOTTED.fullmatch(plain)):
            raise DefinitionError(f"{module!r}:{qualname!r} does not name a function")
        return cls(module, qualname, source, code)


def _refuse_library(module: str, qualname: str) -> None:
    # So that a store from a stranger cannot name os.remove or subprocess.run as its "feature".
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise DefinitionError(
            f"{module}:{qualname} belongs to the standard library",
            "wrap the call in a function of your own",
        )


register_codec(FunctionRef, "$function", FunctionRef.to_json, FunctionRef.from_json)
