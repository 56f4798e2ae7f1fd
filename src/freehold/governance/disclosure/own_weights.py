"""A disclosure of weights that lie here, known or unknown: what their bytes say, and all else as not stated."""

from __future__ import annotations

import re
from datetime import date, timedelta

from freehold.governance.disclosure.catalogue import read_data
from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.facts import disclosure_of
from freehold.governance.disclosure.loading import load_disclosure, shipped_names
from freehold.governance.disclosure.plain import plain
from freehold.governance.disclosure.weights import MeasuredWeights, with_weights

_VALIDITY = timedelta(days=181)


def disclosure_of_weights(name: str, weights: MeasuredWeights, on: date) -> Disclosure:
    """The shipped disclosure of exactly these bytes, if there is one, else one that knows nothing but them.

    name: of the file or directory. It proves nothing, and so enters as what somebody else says.
    """
    name = plain(name)
    for shipped in shipped_names():
        disclosure = load_disclosure(shipped)
        if disclosure.weights_digest == weights.digest:
            return with_weights(disclosure, weights, on)
    entry = read_data("own-weights.json")
    entry["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "weights"
    entry["title"] = f"{name}, weights on own hardware"
    entry["issued"], entry["valid_until"] = on.isoformat(), (on + _VALIDITY).isoformat()
    entry["facts"]["model.name"]["value"] = name
    for fact in entry["facts"].values():
        fact["read"] = on.isoformat()
    return with_weights(disclosure_of(entry, name), weights, on)
