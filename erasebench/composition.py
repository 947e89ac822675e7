"""Several methods in one run, applied in order: ``method=uce+sld_max``, a defence while drawing on top of an edit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline

BETWEEN = "+"
TOGETHER = ("joint", "sequence")


@dataclass(frozen=True, kw_only=True)
class Composed(Method):
    """Erases by each method in turn, every one on what the one before it made.

    A run stores each as a step of its own, so that ``uce+sld_max`` takes the edit that ``uce`` made, and its seconds,
    evaluations and bytes are the sums.

    Args:
        stages: name -> method, in order: any number of edits of the weights, then at most one that works while drawing
            (``Method.guard``): a sampler has room for one, and what is trained after it would not know of it.

    Raises:
        ValueError: fewer than two methods; an order, or a second guard, that cannot work.

    >>> from methods.none import NoErasure
    >>> Composed(stages={"none": NoErasure()})
    Traceback (most recent call last):
    ValueError: method must name at least two methods to compose; got none; write method=none
    """

    stages: Mapping[str, Any]

    def __post_init__(self) -> None:
        names, methods = list(self.stages), list(self.stages.values())
        if len(names) < 2:
            got = ", ".join(names) or "nothing"
            raise ValueError(f"method must name at least two methods to compose; got {got}; write method={got}")
        for name, method in self.stages.items():
            if not callable(getattr(method, "erase", None)):
                raise ValueError(
                    f"stages.{name} must be a method; got {type(method).__name__}; name one of conf/method"
                )
        for i, method in enumerate(methods[:-1]):
            if getattr(method, "guard", False):
                edits = [n for n, m in self.stages.items() if not getattr(m, "guard", False)]
                raise ValueError(
                    "method must list edits of the weights first and at most one method that works while drawing last; "
                    f"got {names[i]} before {names[i + 1]}; write method={BETWEEN.join([*edits, names[i]])}"
                )
        able = [set(getattr(method, "together", ("sequence",))) for method in methods]
        object.__setattr__(self, "together", tuple(t for t in TOGETHER if all(t in ways for ways in able)))
        object.__setattr__(self, "guard", bool(getattr(methods[-1], "guard", False)))

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for method in self.stages.values():
            method.check(concept, shapes)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept, ``pipe`` erased by each stage in turn."""
        for method in self.stages.values():
            pipe = method.erase(pipe, concept)
        return pipe


def stages(method: Any, node: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    """The methods of a run with their config nodes, in order: those that are composed, or the one there is."""
    if isinstance(method, Composed):
        return [(one, node["stages"][name]) for name, one in method.stages.items()]
    return [(method, node)]


def joined(override: str) -> str:
    """``method=[uce,sld_max]`` as ``method=uce+sld_max``, which is one choice for Hydra; all else as it is.

    >>> joined("method=[uce, sld_max]"), joined("method=none,[uce,sld_max]"), joined("also=[dog]")
    ('method=uce+sld_max', 'method=none,uce+sld_max', 'also=[dog]')
    """
    key, equals, value = override.partition("=")
    if key != "method" or not equals:
        return override
    if value.startswith("glob("):
        return override
    return key + equals + re.sub(r"\[([^\[\]]*)\]", lambda found: BETWEEN.join(_words(found[1])), value)


def _words(inner: str) -> list[str]:
    return [word.strip().strip("'\"") for word in inner.split(",") if word.strip()]
