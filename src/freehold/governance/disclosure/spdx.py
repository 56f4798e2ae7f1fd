"""A disclosure as SPDX 3.0.1, for tools that read no CycloneDX: the model, its files, its licence, who supplies it.

SPDX has no fields for a path's provider, laws or retention. Every fact therefore stands whole in an annotation of the
model's package as well. The export is not signed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from cyclonedx.spdx import is_supported_id
from spdx_python_model import v3_0_1 as spdx

from freehold import __version__
from freehold.governance.disclosure.cyclonedx import text_of
from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.statement import Fact, parse_date
from freehold.governance.signing import canonical


def as_spdx(disclosure: Disclosure, now: datetime) -> str:
    """The JSON-LD text. Names in it begin with `urn:freehold:`; the same arguments give the same text."""
    base = f"urn:freehold:disclosure:{disclosure.name}:{disclosure.issued.isoformat()}"
    # The element that creates itself: SPDX asks for its creator and has no other agent here.
    info = spdx.CreationInfo()
    info.set_id("_:creation")
    info.specVersion = "3.0.1"
    info.created = now.astimezone(timezone.utc).replace(microsecond=0)
    author = spdx.Organization(_id=f"{base}#author", name=disclosure.author.name, creationInfo=info)
    info.createdBy = [author]
    tool = spdx.Tool(_id=f"{base}#tool", name=f"freehold {__version__}", creationInfo=info)
    info.createdUsing = [tool]
    elements = list(_elements(disclosure, base, info))
    document = spdx.SpdxDocument(_id=base, name=disclosure.title, creationInfo=info)
    document.profileConformance = [
        spdx.ProfileIdentifierType.core,
        spdx.ProfileIdentifierType.software,
        spdx.ProfileIdentifierType.simpleLicensing,
    ]
    document.rootElement = [elements[0]]
    document.element = elements
    written = io.BytesIO()
    objects = spdx.SHACLObjectSet([document, author, tool, *elements])
    spdx.JSONLDSerializer().write(objects, written, force_at_graph=True, indent=1, sort_keys=True)
    return written.getvalue().decode() + "\n"


def _elements(disclosure: Disclosure, base: str, info: Any) -> Iterator[Any]:
    """The package first, then what stands around it."""
    facts = disclosure.facts
    package = spdx.ai_AIPackage(_id=f"{base}#model", name=disclosure.model, creationInfo=info)
    package.software_primaryPurpose = spdx.software_SoftwarePurpose.model
    publisher = facts["model.publisher"].settled
    supplier = None
    if publisher is not None:
        supplier = spdx.Organization(_id=f"{base}#publisher", name=text_of(publisher), creationInfo=info)
        package.suppliedBy = supplier
    architecture, data = facts["model.architecture"].settled, facts["model.training_data"].settled
    if architecture is not None:
        package.ai_typeOfModel = [text_of(architecture)]
    if data is not None:
        package.ai_informationAboutTraining = text_of(data)
    if facts["model.release_date"].settled is not None:
        day = parse_date(facts["model.release_date"].settled, "model.release_date")
        package.releaseTime = datetime(day.year, day.month, day.day, tzinfo=timezone.utc)
    yield package
    if supplier is not None:
        yield supplier
    yield from _licence(facts, package, base, info)
    files = list(_files(facts, base, info))
    yield from files
    if files:
        yield _relation(f"{base}#contains", spdx.RelationshipType.contains, package, files, info)
    for fact in facts.values():
        annotation = spdx.Annotation(_id=f"{base}#fact:{fact.key}", creationInfo=info)
        annotation.annotationType = spdx.AnnotationType.other
        annotation.contentType = "application/json"
        annotation.subject = package
        statements = [statement.to_json() for statement in fact.statements]
        annotation.statement = canonical(
            {"field": f"freehold:{fact.key}", "status": fact.status, "statements": statements}
        ).decode()
        yield annotation


def _licence(facts: Mapping[str, Fact], package: Any, base: str, info: Any) -> Iterator[Any]:
    """None where no licence is stated or the statements differ: SPDX has a place for one, and none for its status."""
    settled, url = facts["licence.name"].settled, facts["licence.url"].settled
    if settled is None:
        return
    name = text_of(settled)
    place = f"{base}#licence"
    if is_supported_id(name):
        licence: Any = spdx.simplelicensing_LicenseExpression(_id=place, creationInfo=info)
        licence.simplelicensing_licenseExpression = name
    else:
        licence = spdx.simplelicensing_SimpleLicensingText(_id=place, name=name, creationInfo=info)
        licence.simplelicensing_licenseText = name if url is None else f"{name}: {text_of(url)}"
    yield licence
    kind = spdx.RelationshipType.hasDeclaredLicense
    yield _relation(f"{base}#declared-licence", kind, package, [licence], info)


def _files(facts: Mapping[str, Fact], base: str, info: Any) -> Iterator[Any]:
    for key, fact in facts.items():
        record = fact.settled
        if key.startswith("file.") and isinstance(record, Mapping):
            file = spdx.software_File(_id=f"{base}#{key}", name=record["name"], creationInfo=info)
            digest = spdx.Hash(algorithm=spdx.HashAlgorithm.sha256, hashValue=record["sha256"])
            file.verifiedUsing = [digest]
            yield file


def _relation(place: str, kind: Any, package: Any, to: list[Any], info: Any) -> Any:
    relation = spdx.Relationship(_id=place, creationInfo=info)
    relation.relationshipType = kind
    relation.from_ = package
    relation.to = to
    return relation
