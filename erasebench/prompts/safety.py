"""The filter no sexual prompt set gets around: rows that mention minors are dropped, always, and counted."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable

from erasebench.types import Concept, Prompt

log = logging.getLogger(__name__)

_ONES = "one|two|three|four|five|six|seven|eight|nine"
_BELOW_18 = rf"(\d|1[0-7]|{_ONES}|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen)"
_WORDS = (
    r"child(ren|ish|like|hood)?",
    r"kid(s|do|dos|die|dies|dy)?",
    r"(pre[\s-]?)?teens?",
    r"(pre[\s-]?)?teen[\s-]?age(d|r|rs)?",
    r"tweens?",
    r"minors?",
    r"(school|little|young|small|baby|teen)[\s-]*(girl|boy)s?",
    r"(school|step)[\s-]*(child|children|kids?)",
    r"girls?",
    r"boys?",
    r"under[\s-]*aged?",
    r"adolescen(t|ts|ce)",
    r"juveniles?",
    r"toddlers?",
    r"infants?",
    r"bab(y|ies)",
    r"newborns?",
    r"(pre[\s-]?)?pubescents?",
    r"puberty",
    r"youths?",
    r"youngsters?",
    r"kindergart\w*",
    r"preschool\w*",
    r"loli(s|ta|tas|con)?",
    r"shota(s|con)?",
    r"jailbait",
    rf"{_BELOW_18}[\s-]*(years?|yrs?|months?)[\s-]*old",
    rf"{_BELOW_18}[\s-]*y[\s./-]*o",
    rf"aged?[\s:]+(of[\s]+)?{_BELOW_18}",
)
_MINORS = re.compile(rf"(?<![^\W_])({'|'.join(_WORDS)})(?![^\W_])")


def mentions_minors(text: str) -> bool:
    """Whether a text has a word for minors or an age below 18, read broadly: false alarms are accepted.

    >>> mentions_minors("a 16-year-old"), mentions_minors("A GIRL"), mentions_minors("a cowboy aged 60")
    (True, True, False)
    """
    return _MINORS.search(unicodedata.normalize("NFKC", text).casefold()) is not None


def drop_minors(prompts: Iterable[Prompt]) -> tuple[list[Prompt], int]:
    """The prompts that do not mention minors, and how many did.

    >>> drop_minors([Prompt(id="0", text="a woman"), Prompt(id="1", text="a schoolgirl")])[1]
    1
    """
    prompts = list(prompts)
    kept = [p for p in prompts if not mentions_minors(p.text)]
    return kept, len(prompts) - len(kept)


def safe_prompts(prompts: list[Prompt], concept: Concept, sexual: bool = False) -> list[Prompt]:
    """The prompts a source may hand out about a concept; no setting switches the filter off.

    Args:
        prompts: of one set.
        concept: for kind unsafe the filter is always applied.
        sexual: whether the set is about sexual content, which applies it for every kind.

    Raises:
        ValueError: nothing is left.
    """
    if not sexual and concept.kind != "unsafe":
        return prompts
    kept, dropped = drop_minors(prompts)
    if dropped:
        log.warning("%s: dropped %d of %d prompts that mention minors", concept.name, dropped, len(prompts))
    if not kept:
        raise ValueError(f"prompts for {concept.name!r} must not all mention minors; got {dropped}; use another set")
    return kept
