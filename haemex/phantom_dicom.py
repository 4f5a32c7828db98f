"""Synthetic scans as DICOM: CT images and localizers as the scanners of supplemental Table 1 write them, and maps.

The images meet the CT Image IOD of DICOM PS3.3, A.3. The identity in them is invented, so that tests can search for it.
"""

from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np

from haemex.files import write_atomically
from haemex.nifti import write_volume
from haemex.phantom_fields import generator
from haemex.phantom_scanner import SCANNERS

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# ASSUME: headers of routine head protocols of these scanners; none of these values enters an image.
HEADERS = {
    "optima": {
        "description": "Head 5.0",
        "protocol": "1.1 Head Routine",
        "reference": "OM",
        "software": "15MW03.11.V40_H_H64_G_GTL",
        "scan": "AXIAL MODE",
        "filter": "HEAD FILTER",
        "collection_mm": "500.0",
        "source_to_detector_mm": "949.075",
        "source_to_patient_mm": "541.0",
        "exposure_ms": 2000,
        "current_ma": 160,
        "focal_spots_mm": "0.7",
        "power_kw": 19,
        "single_mm": 1.25,
        "total_mm": 20.0,
    },
    "flash": {
        "description": "HeadSeq  5.0  H30s",
        "protocol": "01_HeadSeq",
        "reference": "",
        "software": "syngo CT 2012B",
        "scan": "SEQUENTIAL",
        "filter": "WEDGE_3",
        "collection_mm": "500",
        "source_to_detector_mm": "1085.6",
        "source_to_patient_mm": "595",
        "exposure_ms": 1000,
        "current_ma": 310,
        "focal_spots_mm": "1.2",
        "power_kw": 37,
        "single_mm": 0.6,
        "total_mm": 19.2,
    },
    "force": {
        "description": "Head  5.0  Hr36f",
        "protocol": "Head_Seq",
        "reference": "",
        "software": "syngo CT VA50A",
        "scan": "SEQUENTIAL",
        "filter": "FLAT",
        "collection_mm": "500",
        "source_to_detector_mm": "1085.6",
        "source_to_patient_mm": "595",
        "exposure_ms": 1000,
        "current_ma": 345,
        "focal_spots_mm": "0.8",
        "power_kw": 38,
        "single_mm": 0.6,
        "total_mm": 57.6,
    },
    "perspective": {
        "description": "HeadSeq  5.0  H31s",
        "protocol": "HeadSeq",
        "reference": "",
        "software": "syngo CT VC40",
        "scan": "SEQUENTIAL",
        "filter": "0",
        "collection_mm": "500",
        "source_to_detector_mm": "940",
        "source_to_patient_mm": "535",
        "exposure_ms": 1500,
        "current_ma": 175,
        "focal_spots_mm": "0.95",
        "power_kw": 23,
        "single_mm": 0.6,
        "total_mm": 19.2,
    },
    "aquilion": {
        "description": "Head 5.0 FC26",
        "protocol": "Brain",
        "reference": "",
        "software": "V6.00ER004",
        "scan": "DVOL_CT",
        "filter": "MEDIUM",
        "collection_mm": "240",
        "source_to_detector_mm": "1072.0",
        "source_to_patient_mm": "600.0",
        "exposure_ms": 1000,
        "current_ma": 240,
        "focal_spots_mm": "1.6",
        "power_kw": 36,
        "single_mm": 0.5,
        "total_mm": 20.0,
    },
    "ingenuity": {
        "description": "Head 5.0 UB",
        "protocol": "Head Seq",
        "reference": "",
        "software": "4.1.5",
        "scan": "AXIAL",
        "filter": "UB",
        "collection_mm": "250.0",
        "source_to_detector_mm": "1040.0",
        "source_to_patient_mm": "570.0",
        "exposure_ms": 1000,
        "current_ma": 280,
        "focal_spots_mm": "1.0",
        "power_kw": 40,
        "single_mm": 0.625,
        "total_mm": 20.0,
    },
}


def write_scan(folder, hu, scan, patient, timepoint, seed, series="head"):
    """Write the slices of one series as CT images, under names in no order.

    Parameters
    ----------
    folder : path-like
        Made if it does not exist. Files are `IMA<number>`, of a bone series `IMB<number>`.
    hu : array of int16, (z, y, x)
        From `phantom_scanner.acquire`.
    scan : dict
        From `phantom_scanner.draw_scan` or `thin`.
    patient : dict
        `row` and `truth`.
    timepoint : str
        "baseline" or "followup".
    seed : int
        The study's seed.
    series : str
        "head", or "bone" for the thin slices of a sharp kernel.
    """
    from pydicom.dataset import Dataset

    folder = Path(folder)
    name, key = patient["row"]["patient"], patient["truth"]["scanner"]
    scanner, header = SCANNERS[key], HEADERS[key]
    bone = series == "bone"
    kernel = scanner["bone_kernel" if bone else "kernel"]
    data, start = _dataset(patient, timepoint, seed)
    start += timedelta(seconds=95 if bone else 50)
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SeriesDescription = (
        header["description"].replace("5.0", "2.5 bone").replace(scanner["kernel"], kernel)
        if bone
        else header["description"]
    )
    data.SeriesNumber, data.AcquisitionNumber = (3 if bone else 2), 1
    data.SeriesInstanceUID = _uid(seed, name, timepoint, series)
    data.SeriesDate, data.SeriesTime = _stamp(start)
    data.SliceThickness = f"{scan['thickness_mm']:g}"
    data.ConvolutionKernel = kernel
    data.ImageOrientationPatient = [f"{v:.8g}" for v in (*scan["row_direction"], *scan["column_direction"])]
    data.GantryDetectorTilt = f"{scan['tilt_deg']:g}"
    _add_acquisition(data, scan, scanner, header, seed, name, timepoint)
    if scanner["padding"] is not None:
        data.SpacingBetweenSlices = f"{scan['thickness_mm']:g}"
    data.PixelSpacing = [_decimal(scan["pixel_mm"])] * 2
    data.Rows = data.Columns = scan["matrix"]
    stored = hu + np.int16(1024)
    if scanner["padding"] is not None:
        index = np.arange(scan["matrix"]) - (scan["matrix"] - 1) / 2
        stored[:, np.hypot(index, index[:, None]) > scan["matrix"] / 2] = scanner["padding"]
    stored = stored.astype("<i2" if data.PixelRepresentation else "<u2")
    shared = _encode(data)
    image = Dataset()
    image.file_meta = data.file_meta
    numbers = generator(seed, name, timepoint, series, "file names").permutation(len(hu))
    folder.mkdir(parents=True, exist_ok=True)
    for index, origin in enumerate(scan["origins"]):
        # SIEMENS counts from the vertex down here, GE from the base up.
        order = index if scanner["from_base"] else len(hu) - 1 - index
        image.SOPInstanceUID = _uid(seed, name, timepoint, series, index)
        image.InstanceNumber = order + 1
        image.AcquisitionDate, image.AcquisitionTime = _stamp(start + timedelta(seconds=1.25 * order))
        image.ContentDate, image.ContentTime = _stamp(start + timedelta(seconds=1.25 * order + 4))
        image.ImagePositionPatient = [_decimal(v) for v in origin]
        image.SliceLocation = _decimal(origin[2])
        _save(image, stored[index], folder / f"IM{'B' if bone else 'A'}{numbers[index]:04d}", shared)


def write_scout(folder, hu, scan, patient, timepoint, seed):
    """Write a side view beside the series, as a localizer: in its folder at baseline, in one below it at follow-up."""
    name, key = patient["row"]["patient"], patient["truth"]["scanner"]
    height = round(len(hu) * scan["thickness_mm"] / scan["pixel_mm"])
    view = hu[::-1].astype(np.float32).mean(2)
    view = view[np.minimum(np.arange(height) * len(hu) // height, len(hu) - 1)]
    data, start = _dataset(patient, timepoint, seed)
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    data.SeriesDescription = "Scout" if key == "optima" else "Topogram  0.6  T20f"
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 1, 1, 1
    data.SeriesInstanceUID = _uid(seed, name, timepoint, "scout")
    data.SOPInstanceUID = _uid(seed, name, timepoint, "scout", 0)
    for kind in ("Series", "Acquisition", "Content"):
        setattr(data, f"{kind}Date", _stamp(start)[0])
        setattr(data, f"{kind}Time", _stamp(start)[1])
    data.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
    data.ImagePositionPatient = [_decimal(v) for v in (0.0, scan["origins"][0][1], scan["origins"][-1][2])]
    data.PixelSpacing = [_decimal(scan["pixel_mm"])] * 2
    data.SliceThickness = f"{scan['pixel_mm'] * scan['matrix']:.1f}"
    data.ConvolutionKernel = "STANDARD" if key == "optima" else "T20f"
    data.WindowCenter, data.WindowWidth = "-600", "800"
    del data.RescaleType  # a line sum has no unit of its own
    data.Rows, data.Columns = view.shape
    folder = Path(folder) if timepoint == "baseline" else Path(folder, "scout")
    folder.mkdir(parents=True, exist_ok=True)
    _save(data, np.rint(view + 1024).astype("<i2" if data.PixelRepresentation else "<u2"), folder / "IMS0001")


def write_map(path, values, scan):
    """Write a mask or another map of a scan with the affine ITK gives a series: orthogonal axes, whatever the tilt.

    Parameters
    ----------
    path : path-like
        NIfTI file; its folder is made if it does not exist.
    values : array, (z, y, x)
        Mask, labels, bits of signs or growth in mm; slices sorted along the normal.
    scan : dict
        From `phantom_scanner.draw_scan`.
    """
    step = np.linalg.norm(scan["origins"][1] - scan["origins"][0])
    affine = np.eye(4)
    affine[:3, 0] = scan["row_direction"] * scan["pixel_mm"]
    affine[:3, 1] = scan["column_direction"] * scan["pixel_mm"]
    affine[:3, 2] = scan["normal"] * step
    affine[:3, 3] = scan["origins"][0]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, values, LPS_TO_RAS @ affine)


def _uid(*words):
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["haemex phantom", *(str(word) for word in words)])


def _stamp(moment):
    """Date and time as DICOM writes them."""
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")


def _decimal(value):
    """A number as a DICOM decimal string, at most 16 characters."""
    return f"{round(float(value), 6) + 0.0:.6f}".rstrip("0").rstrip(".")


def _dataset(patient, timepoint, seed):
    """Make the attributes that all images of one examination share, and the moment it started."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    row, key = patient["row"], patient["truth"]["scanner"]
    name, scanner, header = row["patient"], SCANNERS[key], HEADERS[key]
    rng = generator(seed, name, "identity")
    start = datetime.fromisoformat(row["admission_date"]) + timedelta(minutes=int(rng.integers(0, 24 * 60)))
    if timepoint == "followup":
        start += timedelta(hours=row["ct_to_followup_h"] or 24.0)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 100"
    data.SOPClassUID = CTImageStorage
    data.StudyDate, data.StudyTime = _stamp(start)
    data.AccessionNumber = f"ACC{rng.integers(10**7, 10**8)}"
    data.Modality = "CT"
    data.Manufacturer = scanner["manufacturer"]
    data.ManufacturerModelName = scanner["model"]
    data.InstitutionName = "Synthetic General Hospital"
    data.StationName = f"CT{list(SCANNERS).index(key) + 1}"
    data.DeviceSerialNumber = str(generator(seed, "serial number", key).integers(10**4, 10**5))
    data.SoftwareVersions = header["software"]
    data.ReferringPhysicianName = "Invented^Doctor"
    data.StudyDescription = "Head without contrast"
    data.ProtocolName = header["protocol"]
    data.PatientName = f"Phantom^{name}"
    data.PatientID = f"HOSP{rng.integers(10**6, 10**7)}"
    birth = date.fromisoformat(row["admission_date"]).year - row["age_years"] - 1
    data.PatientBirthDate = f"{birth}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    data.PatientSex = row["sex"].upper()
    data.PatientAge = f"{row['age_years']:03d}Y"
    data.BodyPartExamined = "HEAD"
    data.KVP = str(scanner["kvp"])
    data.PatientPosition = "HFS"
    data.StudyInstanceUID = _uid(seed, name, timepoint, "study")
    data.FrameOfReferenceUID = _uid(seed, name, timepoint, "frame")
    data.PositionReferenceIndicator = header["reference"]
    data.StudyID = "1"
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = 16
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    data.WindowCenter, data.WindowWidth = "35", "90"
    if scanner["padding"] is None:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 0
    else:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 15, 1
        data.add_new("PixelPaddingValue", "SS", scanner["padding"])
    return data, start


def _add_acquisition(data, scan, scanner, header, seed, name, timepoint):
    """Add what a scanner notes about its tube, its gantry and its table."""
    rng = generator(seed, name, timepoint, "exposure")
    current = int(header["current_ma"] * rng.uniform(0.9, 1.1))
    data.ScanOptions = header["scan"]
    data.DataCollectionDiameter = header["collection_mm"]
    data.ReconstructionDiameter = f"{scan['pixel_mm'] * scan['matrix']:.3f}".rstrip("0").rstrip(".")
    data.DistanceSourceToDetector = header["source_to_detector_mm"]
    data.DistanceSourceToPatient = header["source_to_patient_mm"]
    data.TableHeight = str(int(rng.integers(125, 175)))
    data.RotationDirection = "CW"
    data.ExposureTime = header["exposure_ms"]
    data.XRayTubeCurrent = current
    data.Exposure = round(current * header["exposure_ms"] / 1000)
    data.FilterType = header["filter"]
    data.GeneratorPower = header["power_kw"]
    data.FocalSpots = header["focal_spots_mm"]
    data.RevolutionTime = header["exposure_ms"] / 1000
    data.SingleCollimationWidth = header["single_mm"]
    data.TotalCollimationWidth = header["total_mm"]


def _encode(elements):
    """Encode elements, explicit VR little endian: tag to bytes. Encoding takes longer than all else about a file."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_data_element

    encoded = {}
    for element in elements:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_data_element(buffer, element)
        encoded[element.tag] = buffer.getvalue()
    return encoded


def _save(data, stored, path, shared=None):
    """Write one image. `shared` are encoded elements that it has besides those of `data`."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info

    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.add_new("PixelData", "OW", stored.tobytes())
    buffer = DicomBytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, data.file_meta)
    encoded = (shared or {}) | _encode(data)
    write_atomically(path, buffer.getvalue() + b"".join(encoded[tag] for tag in sorted(encoded)), durable=False)
