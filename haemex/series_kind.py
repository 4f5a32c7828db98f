"""What an image or a series shows, by its own tags and words: a plain head CT, or the reason why it is none.

Descriptions are looked at and never repeated: they may hold names.
"""

import re

import numpy as np

from haemex.dicom import CT_IMAGE, ENHANCED_CT, tag_number, tag_text, tag_values, tag_vector

# ASSUME: gantry and head together are tilted by less than this against the table's axis; what is steeper is a
# coronal, sagittal or oblique reformat.
MAX_TILT_DEG = 35.0

NO_POSITION = "a CT image without position or orientation"
REFORMAT = "a reformat"
SECONDARY = "images derived from another series"
CONTRAST = "with contrast medium"
OTHER_PART = "a body part other than the head"
FACE = "a part of the head other than the brain"
COMPUTED = "computed from other images (dual energy, perfusion or subtraction)"
ATTENUATION = "made for attenuation correction"
BURNED_IN = "text burned into the images"
TOO_LONG = "longer than a head"
# What the cohort table may overrule: the images show tissue in Hounsfield units all the same.
PINNABLE = (REFORMAT, SECONDARY, CONTRAST, OTHER_PART, FACE, COMPUTED, ATTENUATION, BURNED_IN, TOO_LONG)

# Values of ImageType.
_SCOUT = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"}
_PROJECTION = {"MIP", "MINIP", "VRT", "SSD", "CPR", "PROJECTION IMAGE", "MAXIMUM", "MINIMUM", "VOLREN", "3D"}
_REFORMAT = {"REFORMATTED", "MPR", "CSA MPR", "CSAPARALLEL", "RESAMPLED"}
_NO_HU = {"MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "STD_DEVIATION"}
_COMPUTED = {"VMI", "MAT_REMOVED", "MAT_MODIFIED", "SUBTRACTION", "DIVISION", "MULTIPLICATION", "MASKED", "PERFUSION"}
# Defined terms of RescaleType (DICOM PS3.3, C.11.1.1.2) that are no Hounsfield units.
_OTHER_UNITS = {"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}

# Substrings of BodyPartExamined; those of three letters stand alone.
_HEAD_PARTS = ("HEAD", "BRAIN", "SKULL", "CRANI", "CEREBR")
_OTHER_PARTS = (
    *("CHEST", "THORA", "LUNG", "HEART", "ABDOMEN", "PELVIS", "SPINE", "CERVICAL", "LUMBAR", "NECK", "AORTA", "COLON"),
    *("LEG", "KNEE", "FOOT", "HAND", "EXTREMITY", "HIP", "SHOULDER", "ARM", "ELBOW", "WRIST", "ANKLE"),
    *("LIVER", "KIDNEY", "WHOLEBODY"),
)
_FACE_PARTS = ("SINUS", "ORBIT", "FACE", "FACIAL", "MAXILLA", "MANDIBLE", "JAW", "EAR", "TEMPORAL", "IAC", "MASTOID")


def _words(*patterns):
    """Match any of the words; spaces stand between them, and a dot asks for whatever the word ends with."""
    alternatives = (
        "|".join("|".join(pattern.split()) for pattern in patterns).replace(".", r"\w*").replace("_", r"[\s\-]?")
    )
    return re.compile(rf"\b(?:{alternatives})(?!\w)", re.IGNORECASE)


# Words of descriptions: English, German, French, Spanish, Italian. They are free text, so no list is complete.
_HEAD_WORDS = _words(
    "head. brain. skull. cran. crân. neuro. cereb. cerveau kopf. schädel. schaedel. hirn. tete tête cabeza testa",
    "encef. enceph. encéph. stroke cct ncct nect hoofd hersen.",
)
_OTHER_WORDS = _words(
    "chest thora. lung. heart cardiac coronary abd. pelvi. becken. spine. wirbel. hws bws lws [ctl]_spine cervical",
    "lumbar leg legs knee. foot hand hip hips shoulder. neck hals extremit. liver kidney. renal colon",
)
_FACE_WORDS = _words(
    "sinus sinuses nnh orbit. facial face maxill. mandib. dental petrous. felsenbein. iac iacs mastoid.",
    "temporal_bones?",
)
_WITHOUT_CONTRAST = re.compile(
    r"\b(?:without|w[/\s.]?o|non|no|un|ohne|o\.|sans|s/|sin|sem|senza|zonder|bez|pre|vor|before|nil)[\s.\-]*"
    r"(?:(?:iv|i\.v\.|the)[\s.\-]*)?"
    r"(?:contrast\w*|con|enhanced|enhancement|km|cm|mdc|iv|kontrast\w*|gad\w*|inj(?:e[ck]\w*)?)\b"
    r"|\b(?:w[/\s]?o|nativ\w*|plain|nc[eh]?ct|nect|s/c)\b|\bno[\s\-]?c\b|\b(?:c|iv)\s?-(?=\s|$)|(?<!\w)-\s?c\b",
    re.IGNORECASE,
)
_WITH_CONTRAST = re.compile(
    r"\b(?:ctas?|ctv|ctp|angio\w*|perf\w*|venogra\w*|arteri\w*|venous|venös\w*|venoes\w*|contrast\w*|kontrast\w*|km|"
    r"mdc|inj(?:e[ck]\w*)?|post[\s\-]?(?:c|con|cm|iv)|enhanced|ce|cect|bolus\w*|gado\w*|iomeron|omnipaque|ultravist|"
    r"c/c)\b|\b(?:c|iv)\s?\+|\+\s?c\b",
    re.IGNORECASE,
)
_COMPUTED_WORDS = re.compile(
    r"\b(?:mono\s?-?e\w*|mono|\d+\s?kev|iodine\w*|jod\w*|vnc|virtual\w*|z\s?-?eff\w*|electron density|subtra\w*|"
    r"bone\s?-?remov\w*|r?cbf|r?cbv|mtt|ttp|tmax|tmip|mip|minip|vrt)\b",
    re.IGNORECASE,
)
_ATTENUATION_WORDS = _words("ct_ac ac_ct attn. attenuation")
_BONE_WORDS = re.compile(
    r"\b(?:bone(?!\s?-?remov)\w*|bony|knochen\w*|petrous|osse\w+|hueso\w*|felsenbein\w*|sharp|lung)\b", re.IGNORECASE
)
_AGENTS = ("ContrastBolusAgent", "ContrastBolusIngredient")
_AMOUNTS = ("ContrastBolusVolume", "ContrastBolusTotalDose", "ContrastFlowRate")
_NO_AGENT = re.compile(
    r"\s*(?:none|no|n|0|n/?a|nil|-+|\.|nativ\w*|plain|without|w/?o|ohne|sans|sin|unenhanced|not applicable|false|"
    r"(?:no|non|not|without|ohne|kein|sans|sin)[\s\-]+(?:iv|oral|contrast\w*|kontrast\w*|km|agent|given|used|inj\w*)"
    r"(?:\s\w+){0,2})?\s*",
    re.IGNORECASE,
)


def unfit_image(header):
    """Say why an image cannot belong to the series wanted, from its own header.

    Parameters
    ----------
    header : pydicom.Dataset
        See `haemex.dicom.read_headers`.

    Returns
    -------
    str
        "" where nothing speaks against it.
    """
    modality, sop_class = tag_text(header, "Modality"), str(header.SOPClassUID)
    if modality != "CT":
        # A code of the standard, or nothing is repeated.
        return f"modality {modality if re.fullmatch('[A-Z]{2,16}', modality) else 'not stated'}, not CT"
    if header.frame is None and (sop_class in ENHANCED_CT or (tag_number(header, "NumberOfFrames") or 1) > 1):
        return "multi-frame CT that does not say where its frames lie"
    if sop_class not in (CT_IMAGE, *ENHANCED_CT):
        return "a screen or another secondary image"
    if (tag_number(header, "SamplesPerPixel") or 1) != 1:
        return "colour images"
    kinds = {str(kind).strip().upper() for kind in tag_values(header, "ImageType")}
    if kinds & _SCOUT:
        return "a scout"
    if kinds & _PROJECTION:
        return "a projection"
    if kinds & _NO_HU or tag_text(header, "RescaleType").upper() in _OTHER_UNITS:
        return "values that are no Hounsfield units"
    placed = tag_vector(header, "ImagePositionPatient", 3), tag_vector(header, "ImageOrientationPatient", 6)
    if any(vector is None for vector in placed):
        return NO_POSITION
    if abs(image_normal(placed[1])[2]) < np.cos(np.radians(MAX_TILT_DEG)):
        return "not axial"
    if kinds & _COMPUTED:
        return COMPUTED
    if kinds & _REFORMAT:
        return REFORMAT
    return SECONDARY if "SECONDARY" in kinds else ""


def unfit_series(headers):
    """Say what speaks against a whole series, by its tags and descriptions.

    Parameters
    ----------
    headers : sequence of pydicom.Dataset
        Its images in order; descriptions are those of the one in the middle.

    Returns
    -------
    str
        One of `PINNABLE`; "" where nothing speaks against it.
    """
    first = headers[len(headers) // 2]
    description, protocol, study = (
        re.sub(r"[_^\\]+", " ", f" {text} ")
        for text in (
            f"{tag_text(first, 'SeriesDescription')} {tag_text(first, 'ImageComments')}",
            tag_text(first, "ProtocolName"),
            tag_text(first, "StudyDescription"),
        )
    )
    if _with_contrast(headers, description, protocol):
        return CONTRAST
    part = _other_part(tag_text(first, "BodyPartExamined").upper(), (description, protocol, study))
    if part:
        return part
    if _COMPUTED_WORDS.search(description):
        return COMPUTED
    if _ATTENUATION_WORDS.search(description):
        return ATTENUATION
    if any(tag_text(header, "BurnedInAnnotation").upper() == "YES" for header in headers):
        return BURNED_IN
    return ""


def _with_contrast(headers, description, protocol):
    """Whether any image names an agent, or the description a contrast phase."""
    for header in headers:
        # The confidentiality profiles (DICOM PS3.15, E.1) empty the agent and leave how it was given.
        if not all(_NO_AGENT.fullmatch(tag_text(header, keyword)) for keyword in _AGENTS):
            return True
        if any((tag_number(header, keyword) or 0) > 0 for keyword in _AMOUNTS):
            return True
        if any(map(len, tag_values(header, "ContrastBolusAgentSequence"))):
            return True
    # The protocol often names the whole examination (a native scan within a CTA), so it is believed only where the
    # description says nothing, and it says one thing only.
    if _WITH_CONTRAST.search(_WITHOUT_CONTRAST.sub(" ", description)):
        return True
    negated = _WITHOUT_CONTRAST.search(description) or _WITHOUT_CONTRAST.search(protocol)
    return not negated and bool(_WITH_CONTRAST.search(protocol))


def _other_part(examined, texts):
    """Say that another part of the body is shown; the words of descriptions count where BodyPartExamined is silent."""
    # ASSUME: a body part that names the trunk or a limb is right; an absent or unknown one may be a head.
    if any(part in examined for part in _HEAD_PARTS):
        return ""
    for parts, reason in ((_OTHER_PARTS, OTHER_PART), (_FACE_PARTS, FACE)):
        if any(part == examined or (part in examined and len(part) > 3) for part in parts):
            return reason
    if examined:
        return ""
    for text in texts:
        if _HEAD_WORDS.search(text):
            return ""
        if _FACE_WORDS.search(text):
            return FACE
        if _OTHER_WORDS.search(text):
            return OTHER_PART
    return ""


def image_normal(orientation):
    """Work out the unit normal of an image.

    Parameters
    ----------
    orientation : numpy.ndarray, (6,)
        ImageOrientationPatient.

    Returns
    -------
    numpy.ndarray, (3,)
        In DICOM's coordinates: x to the left, y to the back, z to the head.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / max(np.linalg.norm(normal), 1e-9)


def is_bone(header, kernel):
    """Whether an image is a reconstruction for bone or lung, by its kernel or its description.

    Parameters
    ----------
    header : pydicom.Dataset
        An image of the series.
    kernel : str or None
        Its ConvolutionKernel.
    """
    return (
        is_bone_kernel(kernel, str(header.get("Manufacturer") or ""))
        or tag_text(header, "ConvolutionKernelGroup").upper() in ("BONE", "LUNG")
        or bool(_BONE_WORDS.search(re.sub(r"[_^]", " ", tag_text(header, "SeriesDescription"))))
    )


def is_bone_kernel(kernel, manufacturer):
    """Whether a reconstruction kernel is made for bone or lung, by the vendors' names.

    Parameters
    ----------
    kernel : str or None
        ConvolutionKernel.
    manufacturer : str
        Manufacturer; Philips' letters mean nothing elsewhere.
    """
    # ASSUME: Siemens numbers from 50 (H60s, Hr64, J70h), Canon FC30-39 and from FC50, Philips D, E, L, YC, YD, and
    # GE's words are sharp kernels; a name not known is soft.
    name = (kernel or "").upper()
    if any(word in name for word in ("BONE", "EDGE", "LUNG", "DETAIL", "ULTRA", "SHARP")):
        return True
    if canon := re.fullmatch(r"FC(\d+).*", name):
        return 30 <= int(canon[1]) < 40 or int(canon[1]) >= 50
    if siemens := re.fullmatch(r"[A-Z]{1,2}(\d\d)[A-Z]?.*", name):
        return int(siemens[1]) >= 50
    return manufacturer.upper().startswith("PHILIPS") and name in ("D", "E", "L", "YC", "YD")
