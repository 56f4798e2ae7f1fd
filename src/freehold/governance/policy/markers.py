"""Names and places of one's own: project names, paths and repositories that tell what a text belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from freehold.core.errors import ConfigError
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.detector import Detector
from freehold.governance.policy.path_glob import PathGlob
from freehold.governance.policy.spelling import squeezed

LEAST_LETTERS = 4
"""Letters and digits that a name must have: a shorter one would be found in half of all texts."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")


@dataclass(frozen=True, slots=True)
class Marker:
    """What raises a text to a class.

    name: as findings call it, `marker:NAME`.
    texts: names; found in any case, spacing and spelling of Unicode, and inside of longer words.
    paths: globs such as src/billing/** or *.tfstate; found wherever a path that ends so stands in a text.
    repositories: globs such as github.com/acme/core-*; found with "/" or ":" between their parts.

    Raises ConfigError where it could find nothing, or nearly everything.
    """

    name: str
    data_class: DataClass
    texts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"a marker's name is {self.name!r}; it must have lower-case letters, digits and '-'")
        if not (self.texts or self.paths or self.repositories):
            raise ConfigError(f"the marker {self.name!r} has neither texts, paths nor repositories")
        for text in self.texts:
            if len(squeezed(text).replace("\x00", "")) < LEAST_LETTERS:
                raise ConfigError(
                    f"the marker {self.name!r} looks for {text!r}; a text needs {LEAST_LETTERS} letters or digits"
                )
        for glob in (*self.paths, *self.repositories):
            if len(re.sub(r"[^A-Za-z0-9]", "", glob)) < 2 or "\x00" in glob or not glob.strip("*/?"):
                raise ConfigError(f"the marker {self.name!r} looks for {glob!r}, which nearly everything would fit")
            if any("**" in part.strip("*") for part in re.split(r"[/\\:]+", glob)):
                raise ConfigError(f"the marker {self.name!r} looks for {glob!r}; '**' stands for whole parts of a path")

    def detector(self) -> Detector:
        """What finds it."""
        names = tuple(squeezed(text) for text in self.texts)
        globs = [PathGlob(glob, "/\\") for glob in self.paths]
        globs += [PathGlob(glob, "/\\:") for glob in self.repositories]

        def find(text: str) -> Iterator[str]:
            if names:
                found = squeezed(text)
                yield from (name for name in names if name in found)
            if globs:
                lower = text.lower()
                for glob in globs:
                    yield from glob.find(lower)

        return Detector(f"marker:{self.name}", find, is_prompt=True, in_paths=bool(globs))
