"""What this version runs of all that can be planned. Whoever teaches the engine something changes it here."""

from __future__ import annotations

import shlex

from freehold.plan.subject import Subject
from freehold.plan.weights import KEPT, NOT_LOADED, Format


def does_not_load(subject: Subject) -> tuple[str, ...]:
    """Why the files do not load, whatever they are computed from; empty if they do."""
    return tuple(f"does not load, because {refusal}" for refusal in subject.refusals)


def why_not(subject: Subject, weights: Format) -> tuple[str, ...]:
    """Why this version does not run the model with such weights; empty if it does."""
    found = list(does_not_load(subject))
    stored = {
        kind.form
        for kind in subject.kinds
        if len(kind.info.shape) > 1 and kind.form != "scales" and kind.part not in (*NOT_LOADED, *KEPT)
    }
    if weights != "as-stored" and not (weights == "bf16" and stored == {"BF16"}):
        types = ", ".join(sorted(stored))
        bits = weights.removeprefix("int")
        model = shlex.quote(str(subject.path)) if subject.origin == "files" else "MODEL"
        how = f"write them first: freehold quantize {model} OUT --bits {bits}" if bits in ("4", "8") else "they stay"
        found.append(f"weights are not converted to {weights} on loading, and are stored as {types}; {how}")
    return tuple(found)
