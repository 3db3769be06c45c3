"""A bill of materials in SPDX 3.0.1 with the AI and Dataset profiles, by the SPDX group's classes.

    text(bill)          # JSON-LD
    faults(text)        # what the classes, and the two profiles' rules, find wrong

The classes are generated from the specification's SHACL shapes, so they refuse what the shapes do:
a value of a wrong type, kind or pattern, too few or too many of them, an abstract class. What the
profiles require beyond that (a download location, a release time, one declared and one concluded
licence: SPDX 3.0.1, AI and Dataset profiles, "external properties restrictions") and what shapes
cannot say (an id used twice, a licence that is no SPDX expression, a hash of a wrong length) is
checked here.

Guarantees: the same facts give the same bytes; no network; every element is reached from the lab's
own by relationships.
Out of scope: the facts (`bill_facts.py`); suppliers and licences of libraries, which the lock file
does not hold.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from moxin_lab.openness.bill_facts import LICENCE, Bill, Data, Model
from moxin_lab.openness.licences import expression_fault

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
PROFILES = ("core", "software", "ai", "dataset", "simpleLicensing")
NO_ASSERTION = "https://spdx.org/rdf/3.0.1/terms/ExpandedLicensing/NoAssertionLicense"
"""Of a set whose packages each have their own licence."""
NEEDED = {
    "ai_AIPackage": (
        "software_downloadLocation",
        "software_packageVersion",
        "software_primaryPurpose",
        "releaseTime",
        "suppliedBy",
    ),
    "dataset_DatasetPackage": (
        "dataset_datasetType",
        "software_downloadLocation",
        "software_primaryPurpose",
        "builtTime",
        "originatedBy",
        "releaseTime",
    ),
}
"""Properties that the profiles require of their packages."""


def text(bill: Bill) -> str:
    """The bill as JSON-LD."""
    from spdx_python_model.bindings import v3_0_1 as spdx

    writer = _Writer(spdx, bill)
    writer.add_lab()
    for data in bill.data:
        writer.add_data(data)
    for model in bill.models:
        writer.add_model(model)
    for name, version in bill.packages:
        writer.add_package(name, version)
    return writer.finish()


class _Writer:
    """Elements of one document as they are added; ids are made of the bill's content."""

    def __init__(self, spdx: Any, bill: Bill) -> None:
        self.spdx, self.bill = spdx, bill
        digest = hashlib.sha256(repr(bill).encode()).hexdigest()[:16]
        self.base = f"urn:moxin-lab:{bill.scale}:{digest}"
        self.info = spdx.CreationInfo(_id="_:creation", specVersion="3.0.1")
        self.info.created = _time(bill.created)
        self.elements: list[Any] = []
        self.supplier = self._new(spdx.Organization, "agent:lab", bill.supplier)
        self.info.createdBy = [self.supplier]
        self.licences: dict[str, Any] = {}
        self.by_name: dict[str, Any] = {}

    def _new(self, kind: Any, path: str, name: str, **values: Any) -> Any:
        element = kind(_id=f"{self.base}:{path}", creationInfo=self.info, name=name, **values)
        self.elements.append(element)
        return element

    def add_lab(self) -> None:
        bill = self.bill
        self.lab = self._package(
            self.spdx.software_Package, "lab", bill.title, bill.version, "application"
        )
        self.lab.suppliedBy = self.supplier
        if bill.commit:
            self.lab.software_sourceInfo = f"git commit {bill.commit}"
        self._license(self.lab, bill.licence)

    def add_data(self, data: Data) -> None:
        spdx = self.spdx
        kind = "image" if data.images else "text"
        package = self._package(
            spdx.dataset_DatasetPackage, f"data:{data.name}", data.name, data.version, "data"
        )
        package.summary = data.title
        package.description = data.description
        package.software_downloadLocation = f"data_cards/{data.name}"
        package.verifiedUsing = [self._hash(data.sha256)]
        package.suppliedBy = self.supplier
        package.externalIdentifier = [
            spdx.ExternalIdentifier(
                externalIdentifierType=spdx.ExternalIdentifierType.other, identifier=data.identifier
            )
        ]
        package.builtTime = package.releaseTime = _time(f"{data.published}T00:00:00Z")
        package.originatedBy = [
            self._new(spdx.Agent, f"agent:{data.name}:{number}", name)
            for number, name in enumerate(data.creators)
        ]
        types = spdx.dataset_DatasetType
        package.dataset_datasetType = [getattr(types, kind)]
        package.dataset_datasetSize = data.size
        package.dataset_dataCollectionProcess = data.collection
        package.dataset_knownBias = list(data.biases)
        package.dataset_intendedUse = "evaluation only" if data.evaluation_only else "training"
        package.dataset_datasetAvailability = spdx.dataset_DatasetAvailabilityType.directDownload
        package.dataset_confidentialityLevel = spdx.dataset_ConfidentialityLevelType.clear
        package.comment = data.personal
        self._license(package, " AND ".join(data.licences) or "NOASSERTION")
        self.by_name[data.name] = package

    def add_model(self, model: Model) -> None:
        spdx = self.spdx
        package = self._package(
            spdx.ai_AIPackage, f"model:{model.name}", model.name, self.bill.version, "model"
        )
        package.description = model.description
        package.software_downloadLocation = f"runs/{self.bill.scale}/{model.stage}/{model.name}"
        package.verifiedUsing = [self._hash(model.sha256)]
        package.releaseTime = package.builtTime = _time(model.finished)
        package.suppliedBy = self.supplier
        package.ai_informationAboutTraining = (
            f"Stage {model.stage} at {self.bill.scale} scale, run by its notebook."
        )
        package.ai_limitation = (
            f"Made at {self.bill.scale} scale: it shows mechanisms, not the quality of the model "
            "that the paper describes."
        )
        package.ai_metric = _entries(spdx, model.metrics)
        package.ai_hyperparameter = _entries(spdx, model.hyperparameters)
        self._license(package, LICENCE)
        self.by_name[model.name] = package
        trained = [n for n in model.trained_on if not self._evaluates(n)]
        self._relate(package, "trainedOn", trained)
        self._relate(package, "testedOn", [n for n in model.trained_on if self._evaluates(n)])
        self._relate(package, "descendantOf", model.made_from)

    def add_package(self, name: str, version: str) -> None:
        package = self._package(
            self.spdx.software_Package, f"package:{name}:{version}", name, version, "library"
        )
        package.software_packageUrl = f"pkg:pypi/{name}@{version}"
        self.by_name[f"package:{name}:{version}"] = package

    def finish(self) -> str:
        spdx, bill = self.spdx, self.bill
        libraries = [name for name in self.by_name if name.startswith("package:")]
        self._relate(self.lab, "dependsOn", libraries)
        self._relate(self.lab, "contains", [n for n in self.by_name if n not in libraries])
        profiles = [getattr(spdx.ProfileIdentifierType, name) for name in PROFILES]
        bom = spdx.software_Sbom(_id=f"{self.base}:bom", creationInfo=self.info)
        bom.name = f"{bill.title}, {bill.scale} scale"
        bom.profileConformance = profiles
        bom.rootElement = [self.lab]
        bom.element = list(self.elements)
        document = spdx.SpdxDocument(_id=f"{self.base}:document", creationInfo=self.info)
        document.name = bom.name
        document.profileConformance = profiles
        document.rootElement = [bom]
        document.element = [*self.elements, bom]
        objects = spdx.SHACLObjectSet([*self.elements, bom, document])
        written = io.BytesIO()
        spdx.JSONLDSerializer().write(objects, written)
        value = json.loads(written.getvalue())
        return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    def _package(self, kind: Any, path: str, name: str, version: str, purpose: str) -> Any:
        purposes = self.spdx.software_SoftwarePurpose
        return self._new(
            kind,
            path,
            name,
            software_packageVersion=version,
            software_primaryPurpose=getattr(purposes, purpose),
        )

    def _hash(self, sha256: str) -> Any:
        return self.spdx.Hash(algorithm=self.spdx.HashAlgorithm.sha256, hashValue=sha256)

    def _license(self, package: Any, expression: str) -> None:
        spdx = self.spdx
        if expression not in self.licences:
            if expression == "NOASSERTION":
                target: Any = NO_ASSERTION
            else:
                path = f"licence:{len(self.licences)}"
                target = self._new(
                    spdx.simplelicensing_LicenseExpression,
                    path,
                    expression,
                    simplelicensing_licenseExpression=expression,
                )
            self.licences[expression] = target
        for kind in ("hasDeclaredLicense", "hasConcludedLicense"):
            self._relationship(package, kind, [self.licences[expression]])

    def _evaluates(self, name: str) -> bool:
        return any(data.name == name and data.evaluation_only for data in self.bill.data)

    def _relate(self, package: Any, kind: str, names: Any) -> None:
        if targets := [self.by_name[name] for name in names if name in self.by_name]:
            self._relationship(package, kind, targets)

    def _relationship(self, package: Any, kind: str, targets: list[Any]) -> None:
        spdx = self.spdx
        relation = spdx.Relationship(
            _id=f"{package._id}:{kind}",
            creationInfo=self.info,
            relationshipType=getattr(spdx.RelationshipType, kind),
            to=targets,
        )
        relation.from_ = package
        self.elements.append(relation)


def faults(content: str) -> list[str]:
    """What is wrong with an SPDX 3.0.1 document, one line per fault."""
    from spdx_python_model.bindings import v3_0_1 as spdx

    objects = spdx.SHACLObjectSet()
    try:
        spdx.JSONLDDeserializer().read(io.BytesIO(content.encode()), objects)
        written = io.BytesIO()
        spdx.JSONLDSerializer().write(objects, written)  # a missing mandatory property shows here
    except Exception as error:  # noqa: BLE001 - the classes raise many kinds for a bad file
        return [f"spdx_python_model refuses it: {type(error).__name__}: {error}"]
    if missing := sorted(i for i in objects.missing_ids if not i.startswith("https://spdx.org/")):
        return [f"it refers to {identifier}, which it does not hold" for identifier in missing]
    return [
        *_document_faults(spdx, objects, json.loads(content)),
        *_profile_faults(spdx, objects),
        *_value_faults(spdx, objects),
    ]


def _document_faults(spdx: Any, objects: Any, document: Any) -> Iterator[str]:
    """Of the file as a whole."""
    if (context := document.get("@context")) != CONTEXT:
        yield f"its @context is {context!r}, not {CONTEXT!r}"
    elements = document.get("@graph", [document])
    named = Counter(e.get("spdxId") or e.get("@id") for e in elements)
    yield from (
        f"{name} is the id of {count} elements" for name, count in named.items() if count > 1
    )
    for info in objects.foreach_type(spdx.CreationInfo):
        if info.specVersion != "3.0.1":
            yield f"its specVersion is {info.specVersion!r}, not '3.0.1'"
    documents = list(objects.foreach_type(spdx.SpdxDocument))
    if len(documents) != 1:
        yield f"it holds {len(documents)} SpdxDocument, not one"
    yield from ("its SpdxDocument has no rootElement" for d in documents if not d.rootElement)


def _profile_faults(spdx: Any, objects: Any) -> Iterator[str]:
    """Of packages, by their profiles."""
    relations = list(objects.foreach_type(spdx.Relationship))
    licence = spdx.simplelicensing_AnyLicenseInfo
    for kind, needed in NEEDED.items():
        for package in objects.foreach_type(getattr(spdx, kind)):
            yield from (
                f"{kind} {package.name!r} has no {name}, which its profile requires"
                for name in ("name", *needed)
                if not getattr(package, name)
            )
            for relation in ("hasDeclaredLicense", "hasConcludedLicense"):
                type_of = getattr(spdx.RelationshipType, relation)
                of_it = [r for r in relations if r.relationshipType == type_of]
                of_it = [r for r in of_it if r.from_ is package]
                if len(of_it) != 1:
                    yield f"{kind} {package.name!r} has {len(of_it)} {relation}, not one"
                if any(not isinstance(t, licence | str) for r in of_it for t in r.to):
                    yield f"{relation} of {kind} {package.name!r} leads to something else"


def _value_faults(spdx: Any, objects: Any) -> Iterator[str]:
    """Texts that are more than text."""
    for element in objects.foreach_type(spdx.simplelicensing_LicenseExpression):
        expression = element.simplelicensing_licenseExpression
        if fault := expression_fault(expression):
            yield f"{expression!r} is no SPDX licence expression: {fault}"
    for each in objects.foreach_type(spdx.Hash):
        is_sha256 = each.algorithm == spdx.HashAlgorithm.sha256
        if is_sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", each.hashValue):
            yield f"{each.hashValue!r} is no SHA-256"


def _entries(spdx: Any, pairs: tuple[tuple[str, str], ...]) -> list[Any]:
    return [spdx.DictionaryEntry(key=key, value=value) for key, value in pairs]


def _time(iso: str) -> datetime:
    return datetime.fromisoformat(iso.replace("Z", "+00:00")).astimezone(UTC)
