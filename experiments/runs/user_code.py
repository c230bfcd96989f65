"""Classes that a user names: ``path/to/file.py:Class``, ``package.module:Class``.

Nothing is imported that was not named on the command line. A record that
names such a class is read without it. Of a class that a notebook defines the module is
``__main__``, and its cell is what a file is of others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import linecache
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import CodeType, ModuleType
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
    return found, hashlib.sha256(b"".join(sorted(_sources(module, found)))).hexdigest()


def name_of(kind: type) -> str:
    """Return the name by which :func:`load_object` finds a class that is at hand.

    Raises:
        ValueError: it would find none or another, or not the text that defines it.

    Example:
        >>> from mcr2.objectives import Objective
        >>> name_of(Objective)
        'mcr2.objectives.base:Objective'
    """
    name = f"{kind.__module__}:{kind.__qualname__}"
    if "." in kind.__qualname__:
        raise ValueError(f"{kind.__qualname__} is defined inside another thing; define it outside")
    if load_object(name)[0] is not kind:
        raise ValueError(f"{name} is another class by now than the one given")
    return name


def _sources(module: ModuleType, found: Any) -> set[bytes]:
    """Return the texts that define an object: of its module, its class's, or a notebook's cells."""
    if module.__name__ == "__main__" and not hasattr(module, "__file__"):
        family = inspect.getmro(found) if inspect.isclass(found) else (found,)
        own = [each for each in family if each.__module__ == "__main__"]
        cells = [{"".join(linecache.getlines(c.co_filename)) for c in _codes(each)} for each in own]
        if not all(any(texts) for texts in cells):
            raise ValueError(f"the text that defines {found.__name__} is lost; put it into a file")
        return {text.encode() for texts in cells for text in texts}
    if getattr(module, "__file__", None) is None:
        raise ValueError(f"{module.__name__} has no file, by whose content its runs would be known")
    # A class may come from another file than the one that was named.
    files = {str(module.__file__)}
    if inspect.isclass(found):
        files.add(inspect.getfile(found))
    sources = {file: Path(file).read_bytes() for file in files}
    for code in _codes(found):
        # A module is imported once, and a notebook goes on while its file is edited.
        path = code.co_filename
        if path in sources and code not in _inside(_compile(sources[path], path)):
            raise ValueError(f"{path} was edited after it was imported; import it anew")
    return set(sources.values())


def _codes(found: Any) -> list[CodeType]:
    """Return the compiled code of a function, or of a class's."""
    parts = (found, *getattr(found, "__dict__", {}).values())
    return [part.__code__ for part in parts if inspect.isfunction(part)]


def _compile(source: bytes, path: str) -> CodeType:
    return compile(source, path, "exec", dont_inherit=True)  # this file's __future__ is its own


def _inside(code: CodeType) -> set[CodeType]:
    """Return everything compiled within a piece of code, at any depth."""
    parts = {part for part in code.co_consts if isinstance(part, CodeType)}
    return parts.union(*map(_inside, parts))


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
        exec(_compile(source, path), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
