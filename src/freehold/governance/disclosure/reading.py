"""From a CycloneDX document back to the disclosure that it was made of."""

from __future__ import annotations

from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.disclosure.disclosure import Disclosure


def disclosure_from(document: dict[str, Any], where: str) -> Disclosure:
    """The disclosure in a signed document. Raises GovernanceError, SignatureError among them."""
    raise GovernanceError(f"{where}: documents of version {document.get('specVersion')!r} cannot be read yet")
