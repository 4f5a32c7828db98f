"""The haematoma as a DICOM Segmentation that opens on the series it was found in (DICOM PS3.3, A.51), by highdicom.

Viewers place it by the identifiers of the study, of the frame of reference and of the images, which it repeats. Whom
the images show it does not say: name, birth date, institution and accession number stay empty, and a PACS that asks for
them has to fill them in on import.
"""

import io

import numpy as np

from haemex.errors import InputError
from haemex.files import write_atomically

# All that is read from the images: where they lie and which they are. Whom they show, where and by whom is not.
KEPT = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "Modality", "StudyDate", "StudyTime", "Manufacturer", "ManufacturerModelName"),
    *("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("SpacingBetweenSlices", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
# ASSUME: of the functional groups of multi-frame images, those that say where a frame lies.
KEPT_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "FrameContentSequence")
EMPTY = ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "ReferringPhysicianName")
NO_DATE, NO_TIME = "19000101", "000000"  # where the images say none, and the standard asks for one
SERIES_NUMBER = 9801  # high, so that no series of the scanner has it


def write_segmentation(path, haematoma, slices, geometry, patient, algorithm):
    """Write a haematoma as DICOM Segmentation, binary, one frame per slice that holds some of it.

    Parameters
    ----------
    path : path-like
        The file.
    haematoma : numpy.ndarray of bool, (z, y, x)
        Mask on the grid that the stage convert wrote; on uneven slices each acquired one gets the nearest even one.
    slices : list of list of pydicom.Dataset
        `haemex.series.plan_series`: the headers of the series, which name their files.
    geometry : dict
        The same.
    patient : str
        Code that stands for the patient.
    algorithm : (str, str)
        Name and version of what found it.

    Raises
    ------
    InputError
        The mask is empty, or the images are frames of several files, which one segmentation cannot refer to.
    """
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    if not haematoma.any():
        raise InputError("the haematoma is empty: there is nothing to write", "no action needed", path)
    drawn = on_acquired_slices(haematoma, geometry).astype(np.uint8)
    sources, frames = _sources(slices, drawn, patient)
    name, version = algorithm
    first = sources[0]
    found = highdicom.AlgorithmIdentificationSequence(
        name=name, family=codes.DCM.ArtificialIntelligence, version=version
    )
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Intracerebral haematoma",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Hematoma,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=found,
    )
    # The same mask of the same images by the same model has the same identifiers.
    origin = [str(first.SeriesInstanceUID), name, version, drawn.tobytes().hex()]
    segmentation = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=generate_uid(entropy_srcs=["series", *origin]),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(entropy_srcs=["image", *origin]),
        instance_number=1,
        manufacturer="haemex",
        manufacturer_model_name=name,
        software_versions=version,
        device_serial_number="0",
        content_label="HAEMATOMA",
        content_description="Intracerebral haematoma, research software",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="haemex: haematoma (research)",
    )
    # highdicom writes the time of writing; the time of the images says more, and stays.
    day, time = str(first.StudyDate or NO_DATE), str(first.StudyTime or NO_TIME)
    for prefix in ("Content", "Series", "InstanceCreation"):
        for part, value in (("Date", day), ("Time", time)):
            if f"{prefix}{part}" in segmentation:
                setattr(segmentation, f"{prefix}{part}", value)
    organisation = generate_uid(entropy_srcs=["organisation", *origin])
    for one in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        one.DimensionOrganizationUID = organisation
    for one in segmentation.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in one:
            one.ContributionDateTime = f"{day}{time}"
    file = io.BytesIO()
    segmentation.save_as(file)
    write_atomically(path, file.getvalue())


def on_acquired_slices(mask, geometry):
    """Bring a mask from the grid that convert wrote to the slices as they were acquired.

    Parameters
    ----------
    mask : numpy.ndarray of bool, (z, y, x)
        On the written grid.
    geometry : dict
        See `haemex.geometry.stack_geometry`.

    Returns
    -------
    numpy.ndarray of bool, (acquired slices, y, x)
        The mask itself where the slices are even; else on each acquired slice what the nearest even one holds.
    """
    if geometry["even"]:
        return mask
    positions = np.array(geometry["acquired_positions_mm"])
    heights = np.linspace(positions[0], positions[-1], len(mask))
    return mask[np.abs(positions[:, None] - heights).argmin(axis=1)]


def _sources(slices, drawn, patient):
    """Read the images' headers without whom they show; and put the mask into their order."""
    headers = [same[0] for same in slices]
    files = [header.filename for header in headers]
    classic = all(header.frame is None for header in headers)
    if not classic and len(set(files)) > 1:
        raise InputError(
            "the images are frames of several files, and one segmentation refers to one of them",
            "take the mask as NIfTI",
            files[0],
        )
    sources = [_without_identity(path, patient) for path in (files if classic else files[:1])]
    if classic:
        return sources, drawn
    frames = np.zeros((int(sources[0].NumberOfFrames), *drawn.shape[1:]), np.uint8)
    for header, one in zip(headers, drawn, strict=True):
        frames[header.frame] = one
    return sources, frames


def _without_identity(path, patient):
    """Read what `KEPT` names of an image's header."""
    import pydicom
    from pydicom.uid import generate_uid

    header = pydicom.dcmread(path, stop_before_pixels=True)
    kept = pydicom.Dataset()
    for keyword in KEPT:
        if keyword in header:
            kept[keyword] = header[keyword]
    for groups in (*kept.get("SharedFunctionalGroupsSequence", ()), *kept.get("PerFrameFunctionalGroupsSequence", ())):
        for element in list(groups):
            if element.keyword not in KEPT_GROUPS:
                del groups[element.tag]
    if "NumberOfFrames" in kept:
        # highdicom looks for them among the shared ones; the frames of one series have them in common.
        shared, first = kept.SharedFunctionalGroupsSequence[0], kept.PerFrameFunctionalGroupsSequence[0]
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            if keyword not in shared:
                shared[keyword] = first[keyword]
    for keyword in EMPTY:
        setattr(kept, keyword, "")
    kept.PatientID = patient
    for keyword in ("StudyDate", "StudyTime"):
        if keyword not in kept:
            setattr(kept, keyword, "")
    if not kept.get("FrameOfReferenceUID"):
        kept.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference", str(header.SeriesInstanceUID)])
    kept.file_meta = header.file_meta
    return kept
