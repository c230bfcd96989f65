"""Classes that a user names: ``path/to/file.py:Class``, ``package.module:Class``.

Nothing is imported that was not named on the command line. A record that
names such a class is read without it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

#: Where not None, the only names that are imported.
_ALLOWED: Collection[str] | None = None


@contextlib.contextmanager
def only(names: Collection[str]) -> Iterator[None]:
    """Import nothing but these inside the block: names come from files there, not from a user."""
    global _ALLOWED
    before, _ALLOWED = _ALLOWED, names
    try:
        yield
    finally:
        _ALLOWED = before


def is_user_code(name: str) -> bool:
    """Whether a name is that of a user's own class rather than of something built in."""
    return ":" in name


def load_object(name: str) -> tuple[Any, str]:
    """Import what a name stands for.

    Args:
        name: ``path/to/file.py:NAME``, or ``package.module:NAME``, which is looked for where Python
            looks and then in the current folder.

    Returns:
        The object, and a hash of the files that define it.

    Raises:
        ValueError: no such file, module or name in it, or it cannot be imported.
    """
    if _ALLOWED is not None and name not in _ALLOWED:
        raise ValueError(f"{name} is code; name it (--code {name}) to run it")
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ValueError(f"no file {path} to take {attribute} from")
        module = _import_file(str(path.resolve()), path.read_bytes())
    else:
        module = _import_module(place)
    found = getattr(module, attribute, None)
    if found is None:
        raise ValueError(f"{place} does not define {attribute!r}")
    # A class may come from another file than the one that was named.
    files = {str(module.__file__)}
    if inspect.isclass(found):
        files.add(inspect.getfile(found))
    source = b"".join(sorted(Path(file).read_bytes() for file in files))
    return found, hashlib.sha256(source).hexdigest()


def _import_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.append(here)  # last: nothing in it stands in the way of an installed package
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"module {name!r} cannot be imported: {reason}") from error
    finally:
        sys.path.remove(here)


@functools.lru_cache(maxsize=64)
def _import_file(path: str, source: bytes) -> ModuleType:
    # A name of its own for each file, so that two files called loss.py do not meet.
    name = f"mcr2_user_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    try:
        # Compiled from its text: cached bytecode does not see an edit within the same second, and
        # leaves a folder beside the user's file.
        exec(compile(source, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
