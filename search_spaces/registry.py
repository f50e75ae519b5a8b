"""Things by name, such as blocks, families and runtimes: ours first, then those that installed packages add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from search_spaces.errors import SpaceError, unknown

Thing = TypeVar("Thing")


def points(group: str) -> list[EntryPoint]:
    """The entry points of a group, of every installed package; nothing is imported."""
    return list(entry_points(group=group))


@dataclass(frozen=True)
class Registry(Generic[Thing]):
    """Named things of one kind.

    Args:
        kind: what one is called in a message. group: of the entry points by which other packages add theirs.
        ours: name -> the thing, or its ``module:name``, imported when it is first asked for.
        wanted: what a thing must be an instance of. error: the class to raise.
    """

    kind: str
    group: str
    ours: Mapping[str, Thing | str]
    wanted: type = object
    error: type[ValueError] = SpaceError

    def names(self) -> list[str]:
        """Every name, sorted; nothing is imported."""
        return sorted({*self.ours, *(point.name for point in points(self.group))})

    def __contains__(self, name: object) -> bool:
        """Whether anybody knows the name; nothing is imported."""
        return name in self.ours or any(point.name == name for point in points(self.group))

    def get(self, name: str) -> Thing:
        """The thing of a name; ours where it is taken twice.

        Raises:
            SpaceError: (or ``error``) if nobody knows the name, with the nearest one; if what a package names cannot be
                imported, or is something else.
        """
        if name in self.ours:
            return self._ours(name)
        for point in points(self.group):
            if point.name == name:
                return self._theirs(point)
        raise self.error(unknown(self.kind, name, self.names()))

    def __iter__(self) -> Iterator[Thing]:
        """Ours, then those of other packages, each imported as it is reached."""
        for name in self.ours:
            yield self._ours(name)
        for point in points(self.group):
            if point.name not in self.ours:
                yield self._theirs(point)

    def _ours(self, name: str) -> Thing:
        found = self.ours[name]
        if not isinstance(found, str):
            return found
        thing: Thing = self._checked(name, found, self._load(name, found))
        return thing

    def _theirs(self, point: EntryPoint) -> Thing:
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            raise self._absent(point.name, point.value, error) from error
        thing: Thing = self._checked(point.name, point.value, found)
        return thing

    def _load(self, name: str, path: str) -> Any:
        module, _, inner = path.partition(":")
        try:
            return getattr(import_module(module), inner)
        except (ImportError, AttributeError) as error:
            raise self._absent(name, path, error) from error

    def _absent(self, name: str, path: str, error: Exception) -> ValueError:
        return self.error(f"{self.kind} {name!r}: {path} cannot be loaded ({error}); repair or uninstall it")

    def _checked(self, name: str, path: str, found: Any) -> Any:
        if not isinstance(found, self.wanted):
            of = self.wanted.__name__
            raise self.error(f"{self.kind} {name!r}: entry point {path} must name a {of}, not {found!r:.80}")
        return found
