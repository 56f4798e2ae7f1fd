"""The classes of data, from what everybody may read to what nobody has been able to read."""

from __future__ import annotations

from enum import IntEnum

from freehold.core.errors import ConfigError


class DataClass(IntEnum):
    """Ordered: of two classes the higher one holds for what has both."""

    PUBLIC = 0  # published, or meant to be: open-source code, public documents
    GENERAL = 1  # work that shows nothing of one's own: questions, translations of public texts
    PROPRIETARY = 2  # own code, architecture, unreleased products, system prompts
    REGULATED = 3  # what a law protects: personal data, payment cards, account numbers, health
    SECRET = 4  # what opens doors: keys, tokens, passwords
    UNKNOWN = 5  # nobody could look: a detector failed, or there is none for it

    @property
    def word(self) -> str:
        """As settings, policies and headers write it."""
        return self.name.lower()

    @classmethod
    def of(cls, word: object, what: str) -> DataClass:
        """The class of that name. Raises ConfigError, which says `what` was to be a class."""
        for member in cls:
            if member.word == word:
                return member
        raise ConfigError(f"{what} is {word!r}; it must be one of {', '.join(member.word for member in cls)}")
