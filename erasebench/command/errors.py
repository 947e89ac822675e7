"""Everything a user can cause, as one line; what is left is a fault of this program and keeps its traceback."""

from __future__ import annotations

import os
import re
import sys
import traceback

from erasebench.building import EXTRAS
from erasebench.store.files import FULL, NoRoom

BUG = "this looks like a fault of erasebench; please report it with the lines above and the command that was given"
STOPPED = "stopped; what was finished is stored, and the same command goes on from there"

NETWORK = ("httpx", "httpcore", "huggingface_hub", "requests", "urllib3")
CAUSED = (ValueError, TypeError, KeyError, OSError, ArithmeticError, ImportError, MemoryError, EOFError)
DEVICE = re.compile(
    r"CUDA|cuda|device string|No HIP|NVIDIA|MPS backend|Invalid device|device type|device ordinal|not linked with"
)
BAD_FILE = re.compile(r"onnx|protobuf|safetensors|header|truncated|PytorchStreamReader", re.IGNORECASE)


def traceback_wanted() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("ERASEBENCH_TRACEBACK", "0") not in ("", "0")


def one_line(text: str) -> str:
    """The text without its line breaks and the indents behind them.

    >>> one_line("In 'config':\\n    no such file\\n")
    "In 'config': no such file"
    """
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """The text without what a terminal would obey: a shared results folder may name its methods in control characters.

    >>> printable("a\\x1b[31mb\\n")
    'a?[31mb\\n'
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def explain(error: BaseException) -> str | None:
    """What went wrong in one line, or None for an error that no input should cause.

    >>> explain(ZeroDivisionError("division by zero")), explain(AttributeError("x"))
    ('ZeroDivisionError: division by zero', None)
    """
    module, name = type(error).__module__, type(error).__name__
    text = one_line(str(error.args[-1]) if isinstance(error, KeyError) and error.args else str(error))
    family = module.split(".")[0]
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or re.search("out of memory|can't allocate", text):
        return f"out of memory - what is drawn at once must fit; {_first(text) or name}; lower model.batch_size"
    if family in ("hydra", "omegaconf"):
        return _hydra(error)
    if family in NETWORK or (isinstance(error, OSError) and "huggingface.co" in text):
        reason = _first(text) or name
        return f"the network - must be reachable for what is downloaded on first use; {reason}; see erasebench needs"
    if isinstance(error, ImportError):
        return _missing(error, text)
    if isinstance(error, OSError):
        return _file(error, text)
    if isinstance(error, TypeError) and (
        found := re.search(r"(\w+)\.__init__\(\) (got an unexpected .*|missing .*)", text)
    ):
        return f"{found[1]} - must be given the settings it has; {found[2]}; see --cfg job"
    if "linalg" in module.lower() or name == "LinAlgError" or re.search(r"linalg|singular|ill-conditioned", text):
        return f"a linear system - must have a solution; {_first(text)}; raise the method's regularisation (lamb)"
    if isinstance(error, CAUSED):
        plain = module.startswith("builtins") and isinstance(error, ValueError | OSError) and text
        return text if plain else f"{name}: {text}".rstrip(": ")
    if isinstance(error, RuntimeError) and DEVICE.search(text):
        return f"model.device - must be a device of this machine (cpu, cuda, cuda:0, mps, auto); {_first(text)}"
    if family in ("onnxruntime", "safetensors", "safetensors_rust", "pyarrow", "PIL", "cv2") or (
        isinstance(error, RuntimeError) and BAD_FILE.search(text)
    ):
        return f"a file - must be whole and of the kind its name says; {_first(text)}; fetch it again"
    return None


def code(error: BaseException) -> int:
    """Exit code of an error: 2 for a mistake in what was given, 1 for a fault of this program and for a full disk.

    >>> code(ValueError("seed must be an integer")), code(AttributeError("x")), code(OSError(28, "No space left"))
    (2, 1, 1)
    """
    full = isinstance(error, NoRoom) or getattr(error, "errno", None) in FULL
    return 1 if full or explain(error) is None else 2


def _first(text: str) -> str:
    """The first sentence, without the advice torch gives to its own developers."""
    return re.split(r"\. |\s*Exception raised from|\s*CUDA kernel errors might", text, maxsplit=1)[0].rstrip(".")


def _missing(error: ImportError, text: str) -> str:
    package = (error.name or "").split(".")[0]
    if package in EXTRAS:
        return f"{package} - must be installed for this; it is not; pip install 'erasebench[{EXTRAS[package]}]'"
    return text or f"{package} cannot be imported"


def _file(error: OSError, text: str) -> str:
    if error.errno in FULL:
        return f"the disk - must have room; {text}; free some space and give the same command again, it goes on"
    if error.errno is None or not error.filename:
        return text
    return f"{error.filename} - {os.strerror(error.errno).lower()}; check the path"


def _hydra(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages: their first line, and their advice where it is good."""
    text = str(error)
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, word = found[1].rpartition("/")
        options = re.findall(r"^\t(\w\S*)$", text.partition("Available options")[2].partition("search path")[0], re.M)
        from erasebench.command.choices import hint, listed

        choices = f" of {listed(options, group + 's')}" if options else ""
        return f"{group or 'config'} - must be one{choices or ' of its yamls'}; got {word!r}; {hint(word, options)}"
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = found[1].partition("=")
        return (
            f"{key} - must be one value, or several of a sweep; got {values}; "
            f"add -m to run each of them, or brackets for a list, '{key}=[{values}]'"
        )
    if found := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        return f"{found[1]} - must be a group that the chosen configs have; this choice has none; leave it out"
    if found := re.search(r"Could not delete.*?'([^']+)'", text):
        return f"~{found[1]} - must name something that is there; it does not; leave it out"
    if "Multiple values for" in text:
        return one_line(text.splitlines()[0]).rstrip(".") + "; write it once, without a +"
    cause = str(error.__cause__ or "").splitlines()
    return one_line("; ".join([text.splitlines()[0] if text else type(error).__name__, *cause[:1]]))


def report(error: BaseException, where: str = "") -> str:
    """Print an error to stderr, in one line if a user can cause it, and return that line.

    Args:
        where: the cell it happened in, as ``cell 2 of 4 (method=uce)``; "" outside a sweep.
    """
    line = explain(error)
    for more in getattr(error, "lines", ())[:-1]:  # of several things that are missing
        print(f"error: {f'{where}: ' if where else ''}{more}", file=sys.stderr)
    if hasattr(error, "lines"):
        line = error.lines[-1]
    if line is None or traceback_wanted():
        traceback.print_exception(error, file=sys.stderr)
    said = line if line is not None else f"{type(error).__name__}: {one_line(str(error))}; {BUG}"
    print(f"error: {f'{where}: ' if where else ''}{said}", file=sys.stderr, flush=True)
    return said
