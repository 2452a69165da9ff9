"""What a class is, in the codes of SNOMED CT by which DICOM tells structures apart.

A data set may give them; else a class that bears a common name gets its own, and every other one
those of an anatomical structure.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dcamt.config import ClassCodes, Code
from dcamt.errors import InputError

ANATOMY = ("123037004", "SCT", "Anatomical Structure")
MORPHOLOGY = ("49755003", "SCT", "Morphologically Altered Structure")
STRUCTURES = {
    "adrenal gland": "23451007", "amygdala": "4958002", "aorta": "15825003", "artery": "51114001",
    "atrium": "59652004", "bladder": "89837001", "blood vessel": "59820001", "bone": "272673000",
    "brain": "12738006", "breast": "76752008", "caudate nucleus": "11000004",
    "cerebellum": "113305005", "cerebral cortex": "40146001", "colon": "71854001",
    "duodenum": "38848004", "esophagus": "32849002", "eye": "81745001", "femur": "71341001",
    "gallbladder": "28231008", "gray matter": "389081007", "heart": "80891009",
    "hepatic vein": "8993003", "hippocampus": "5366008", "humerus": "85050009",
    "inferior vena cava": "64131007", "kidney": "64033007", "larynx": "4596009",
    "left atrium": "82471001", "left ventricle": "87878005", "liver": "10200004",
    "lung": "39607008", "lymph node": "59441001", "mandible": "91609006", "muscle": "71616004",
    "optic nerve": "18234004", "ovary": "15497006", "pancreas": "15776009",
    "pancreatic duct": "69930009", "parotid gland": "45289007", "pituitary": "56329008",
    "portal vein": "32764006", "prostate": "41216001", "pulmonary artery": "81040000",
    "pulmonary vein": "122972007", "putamen": "89278009", "rectum": "34402009", "rib": "113197003",
    "right atrium": "73829009", "right ventricle": "53085002", "sacrum": "54735007",
    "scapula": "79601000", "skin": "39937001", "small intestine": "30315005",
    "spinal cord": "2748008", "spine": "421060004", "spleen": "78961009", "sternum": "56873002",
    "stomach": "69695003", "testis": "40689003", "thalamus": "42695009", "thyroid": "69748006",
    "tibia": "12611008", "tongue": "21974007", "trachea": "44567001", "uterus": "35039007",
    "vein": "29092000", "vertebra": "51282000", "vessel": "59820001", "white matter": "389080008",
}  # fmt: skip
"""Found by the whole name, without its side: a part of an organ is another structure."""
CHANGES = {
    "abscess": "44132006", "aneurysm": "85659009", "cancer": "108369006", "cyst": "367643001",
    "edema": "79654002", "hemorrhage": "50960005", "lesion": "52988006", "necrosis": "6574001",
    "neoplasm": "108369006", "nodule": "27925004", "oedema": "79654002", "thrombus": "396339007",
    "tumor": "108369006", "tumour": "108369006",
}  # fmt: skip
"""Found by the last word: a liver tumour is a tumour."""
MEANINGS = {
    "cancer": "Neoplasm", "oedema": "Edema", "tumor": "Neoplasm", "tumour": "Neoplasm",
    "vessel": "Blood vessel",
}  # fmt: skip
"""Of names that the codes' own differ from."""


def read_codes(path: Path, entries: Any, classes: Sequence[str]) -> dict[str, ClassCodes]:
    """The codes that dataset.json gives, by class.

    Raises InputError for what is no code, and for a class that is not declared.
    """
    try:
        codes = TypeAdapter(dict[str, ClassCodes]).validate_python(entries)
    except ValidationError:
        raise InputError(
            f"{path}: 'codes' is malformed; write it as "
            '{"NAME": {"category": [VALUE, SCHEME, MEANING], "type": [VALUE, SCHEME, MEANING]}}, '
            'such as ["10200004", "SCT", "Liver"], with values and schemes of at most 16 letters '
            "and meanings of at most 64"
        ) from None
    unknown = [name for name in codes if name not in classes[1:]]
    if unknown:
        raise InputError(
            f"{path}: 'codes' names {unknown[0]!r}, which is no class; take one of "
            f"{', '.join(classes[1:])}"
        )
    return codes


def codes_of(name: str) -> ClassCodes:
    """Category and type of a class by its name."""
    words = name.lower().replace("_", " ").split()
    change = words[-1] if words else ""
    if change in CHANGES:
        return ClassCodes(category=MORPHOLOGY, type=_code(change, CHANGES))
    for known in (" ".join(words), " ".join(w for w in words if w not in ("left", "right"))):
        if known in STRUCTURES:
            return ClassCodes(category=ANATOMY, type=_code(known, STRUCTURES))
    return ClassCodes(category=ANATOMY, type=ANATOMY)


def _code(name: str, table: dict[str, str]) -> Code:
    return table[name], "SCT", MEANINGS.get(name, name.capitalize())
