"""The class of a request, found by looking at all of it. Whatever goes wrong on the way makes the class "unknown"."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.governance.policy import detect_ids, detect_numbers, detect_secrets, detect_words
from freehold.governance.policy.base64_text import unpacked
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.contents import SEPARATOR, STRUCTURE_KINDS, contents
from freehold.governance.policy.detector import Detector
from freehold.governance.policy.settings import BASE, ClassSettings
from freehold.governance.policy.spelling import spellings

logger = logging.getLogger("freehold.governance")

# So much text is looked at without a pause; other threads wait meanwhile. Nothing that is looked for is longer than
# the overlap.
_WINDOW_CHARS = 64 * 1024
_OVERLAP_CHARS = 6 * 1024

FAILED = "failed:"
"""Findings that begin so name a detector that failed, or "time" when it ran out."""

_OWN = (*detect_numbers.DETECTORS, *detect_ids.DETECTORS, *detect_secrets.DETECTORS, *detect_words.DETECTORS)


@dataclass(frozen=True, slots=True)
class Classification:
    """What a request is.

    data_class: the highest of all that apply. findings: kind -> how many different ones; never what they are.
    because: those findings, "base" or "declared" that give it this class, sorted.
    """

    data_class: DataClass
    findings: Mapping[str, int]
    because: tuple[str, ...]


def unreadable(what: str) -> Classification:
    """Of a request that nobody could look at. what: the finding's name."""
    return Classification(DataClass.UNKNOWN, {what: 1}, (what,))


class _TimeIsUpError(Exception):
    pass


class Classifier:
    """Classifies JSON values; may be called from several threads at once.

    detectors: None: those that the settings ask for. clock: monotonic seconds.
    Raises ConfigError where the settings ask for a detector that is not installed.
    """

    def __init__(
        self,
        settings: ClassSettings,
        *,
        detectors: Sequence[Detector] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._clock = clock
        if detectors is None:
            detectors = [detector for detector in _OWN if settings.uses(detector.name)]
            detectors += [marker.detector() for marker in settings.markers]
            if settings.uses("betterleaks"):
                from freehold.governance.policy.detect_betterleaks import betterleaks_detector

                detectors.append(betterleaks_detector())
        self._detectors = tuple(detectors)
        self._marker_classes = {f"marker:{marker.name}": marker.data_class for marker in settings.markers}

    @property
    def is_prompt(self) -> bool:
        """Whether all detectors are, see Detector."""
        return all(detector.is_prompt for detector in self._detectors)

    def classify(
        self, body: Any, *, client: str = "", declared: DataClass | None = None, extra: Sequence[str] = ()
    ) -> Classification:
        """The class of a body, with whatever else would leave with it. declared: what the client says of it, which may
        raise the class and never lower it. Does not raise."""
        try:
            findings = self._findings(body, extra)
        except _TimeIsUpError:
            findings = {f"{FAILED}time": 1}
        except Exception as error:
            logger.error("a request could not be looked through: %s", type(error).__name__)
            findings = {f"{FAILED}reading": 1}
        return self._judge(findings, client, declared)

    def _judge(self, findings: Mapping[str, int], client: str, declared: DataClass | None) -> Classification:
        table = self.settings.of(client)
        base = table[BASE]
        assert base is not None, "settings never switch it off"
        classes = {BASE: base}
        if declared is not None:
            classes["declared"] = declared
        shown: dict[str, int] = {}
        for kind, count in findings.items():
            # A kind that no settings know, a failure among them, is nothing that anybody has judged.
            found = self._marker_classes.get(kind, table.get(kind, DataClass.UNKNOWN))
            if found is not None:
                classes[kind] = found
                shown[kind] = count
        highest = max(classes.values())
        because = tuple(sorted(kind for kind, found in classes.items() if found is highest))
        return Classification(highest, dict(sorted(shown.items())), because)

    def _findings(self, body: Any, extra: Sequence[str]) -> dict[str, int]:
        deadline = self._clock() + self.settings.seconds
        held = contents(body, extra)
        findings = {kind: held.kinds[kind] for kind in STRUCTURE_KINDS if held.kinds.get(kind)}
        apart, joints = _spellings([held.text]), _spellings([held.joints])
        inner, opaque = [], 0
        for view in (*apart, *joints):
            for window in _windows(view):
                self._check(deadline)
                texts, unread = unpacked(window)
                inner += texts
                opaque = max(opaque, unread)
        if opaque and not findings.get("image") and not findings.get("sealed"):
            findings["file"] = findings.get("file", 0) + opaque
        apart += _spellings([SEPARATOR.join(inner)])
        paths = _spellings([held.paths]) if any(detector.in_paths for detector in self._detectors) else []
        for detector in self._detectors:
            views = [*apart, *(joints if detector.in_joints else ()), *(paths if detector.in_paths else ())]
            count = self._count(detector, views, deadline)
            if count:
                name, number = count
                findings[name] = number
        return findings

    def _count(self, detector: Detector, views: Sequence[str], deadline: float) -> tuple[str, int] | None:
        """The finding of one detector: its own, its failure, or none."""
        values: set[str] = set()
        try:
            for view in views:
                for window in _windows(view):
                    self._check(deadline)
                    values.update(detector.find(window))
        except _TimeIsUpError:
            raise
        except Exception as error:
            # Its message may quote what it was given.
            logger.error("the detector %s failed: %s", detector.name, type(error).__name__)
            return f"{FAILED}{detector.name}", 1
        return (detector.name, len(values)) if values else None

    def _check(self, deadline: float) -> None:
        if self._clock() > deadline:
            raise _TimeIsUpError


def _spellings(texts: Sequence[str]) -> list[str]:
    """All readings of the texts, each once."""
    return list(dict.fromkeys(reading for text in texts if text for reading in spellings(text)))


def _windows(text: str) -> Iterator[str]:
    if len(text) <= _WINDOW_CHARS:
        yield text
        return
    for start in range(0, len(text), _WINDOW_CHARS - _OVERLAP_CHARS):
        yield text[start : start + _WINDOW_CHARS]
