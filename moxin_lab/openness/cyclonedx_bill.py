"""A bill of materials in CycloneDX 1.6 with model cards (ML-BOM), by the CycloneDX library.

    text(bill)          # JSON
    faults(text)        # what the schema of 1.6, which the library ships, and our rules find wrong

The library has no class for model cards and data, so these two parts are put into the components
that it writes; its strict validator checks the whole.

Guarantees: the same facts give the same bytes; no network.
Out of scope: the facts (`bill_facts.py`).
"""

import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from moxin_lab.openness.bill_facts import LICENCE, Bill, Data, Model
from moxin_lab.openness.licences import expression_fault

APPROACHES = {
    "pretrained": "self-supervised",
    "vision_towers": "self-supervised",
    "tokenizer": "unsupervised",
    "reasoning": "reinforcement-learning",
}
"""How a model learns, where it is not supervised: words of the schema."""


def text(bill: Bill) -> str:
    """The bill as JSON."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.contact import OrganizationalEntity
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"urn:moxin-lab:{bill!r}"))
    bom.metadata.timestamp = datetime.fromisoformat(bill.created.replace("Z", "+00:00"))
    lab = _component(bill.title, bill.version, ComponentType.APPLICATION, "lab", bill.licence)
    bom.metadata.component = lab
    parts: dict[str, Any] = {}
    for data in bill.data:
        expression = " AND ".join(data.licences)
        parts[data.name] = _component(
            data.name,
            data.version,
            ComponentType.DATA,
            f"data:{data.name}",
            expression,
            description=data.description,
            sha256=data.sha256,
        )
    for model in bill.models:
        parts[model.name] = _component(
            model.name,
            bill.version,
            ComponentType.MACHINE_LEARNING_MODEL,
            f"model:{model.name}",
            LICENCE,
            description=model.description,
            sha256=model.sha256,
        )
    for supplied in (lab, *parts.values()):
        supplied.supplier = OrganizationalEntity(name=bill.supplier)
    libraries = [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"package:{name}:{version}",
            purl=PackageURL("pypi", None, name, version),
        )
        for name, version in bill.packages
    ]
    for component in (*parts.values(), *libraries):
        bom.components.add(component)
    bom.register_dependency(lab, [*parts.values(), *libraries])
    for model in bill.models:
        named = (*model.made_from, *model.trained_on)
        bom.register_dependency(parts[model.name], [parts[n] for n in named if n in parts])
    written = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    value = json.loads(written)
    by_ref = {component["bom-ref"]: component for component in value["components"]}
    for data in bill.data:
        by_ref[f"data:{data.name}"]["data"] = [_data_part(data)]
    for model in bill.models:
        by_ref[f"model:{model.name}"]["modelCard"] = _model_card(model, bill)
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _component(
    name: str,
    version: str,
    kind: Any,
    ref: str,
    licence: str,
    *,
    description: str | None = None,
    sha256: str | None = None,
) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import LicenseExpression

    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []
    return Component(
        name=name,
        version=version,
        type=kind,
        bom_ref=ref,
        description=description,
        hashes=hashes,
        licenses=[LicenseExpression(licence)] if licence else [],
    )


def _data_part(data: Data) -> dict[str, Any]:
    return {
        "type": "dataset",
        "name": data.title,
        "description": data.description,
        "contents": {
            "url": f"data_cards/{data.name}",
            "properties": [
                {"name": "identifier", "value": data.identifier},
                {"name": "bytes", "value": str(data.size)},
                {"name": "published", "value": data.published},
                {"name": "use", "value": "evaluation" if data.evaluation_only else "training"},
            ],
        },
        "classification": "public",
        "sensitiveData": [data.personal],
        "governance": {"custodians": [{"organization": {"name": n}} for n in data.creators]},
    }


def _model_card(model: Model, bill: Bill) -> dict[str, Any]:
    trained = {data.name for data in bill.data if not data.evaluation_only}
    return {
        "modelParameters": {
            "approach": {"type": APPROACHES.get(model.name, "supervised")},
            "architectureFamily": "byte-level BPE" if model.name == "tokenizer" else "transformer",
            "datasets": [{"ref": f"data:{n}"} for n in model.trained_on if n in trained],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [{"type": name, "value": value} for name, value in model.metrics]
        },
        "considerations": {
            "technicalLimitations": [
                f"Made at {bill.scale} scale: it shows mechanisms, not the quality of the model "
                "that the paper describes."
            ]
        },
        "properties": [
            {"name": "stage", "value": model.stage},
            {"name": "bytes", "value": str(model.size)},
            *({"name": f"setting {n}", "value": v} for n, v in model.hyperparameters),
            *({"name": f"SHA-256 of {n}", "value": digest} for n, digest in model.files),
        ],
    }


def faults(content: str) -> list[str]:
    """What is wrong with a CycloneDX 1.6 document, one line per fault."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    try:
        value = json.loads(content)
    except ValueError as error:
        return [f"it is not JSON: {error}"]
    if not isinstance(value, dict) or value.get("specVersion") != "1.6":
        return ["it does not say specVersion 1.6"]
    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(content, all_errors=True)
    if errors:
        return [f"schema: {str(error.data.message)[:300]}" for error in errors]
    return list(_unlike_a_bill(value))


def _unlike_a_bill(value: dict[str, Any]) -> Iterator[str]:
    """What the schema allows and a bill of models and data must not have."""
    components = value.get("components") or []
    refs = [component["bom-ref"] for component in components if "bom-ref" in component]
    lab = (value.get("metadata") or {}).get("component") or {}
    known = {*refs, lab.get("bom-ref")}
    if len(set(refs)) != len(refs):
        yield "two components have one bom-ref"
    for component in components:
        name, kind = component.get("name"), component.get("type")
        for licence in component.get("licenses") or []:
            if fault := expression_fault(licence.get("expression", "MIT")):
                yield f"the licence of {name!r} is no SPDX expression: {fault}"
        if kind not in ("machine-learning-model", "data"):
            continue
        if not any(h.get("alg") == "SHA-256" for h in component.get("hashes") or []):
            yield f"{kind} {name!r} has no SHA-256"
        if kind == "data" and not component.get("data"):
            yield f"data {name!r} says nothing of its data"
        if kind == "machine-learning-model":
            card = component.get("modelCard") or {}
            if not component.get("licenses"):
                yield f"model {name!r} has no licence"
            if not card:
                yield f"model {name!r} has no model card"
            for data in (card.get("modelParameters") or {}).get("datasets") or []:
                if "ref" in data and data["ref"] not in known:
                    yield f"model {name!r} refers to {data['ref']}, which is not listed"
    for dependency in value.get("dependencies") or []:
        for ref in (dependency.get("ref"), *(dependency.get("dependsOn") or [])):
            if ref not in known:
                yield f"a dependency refers to {ref}, which is not listed"
