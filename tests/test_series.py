import json
import shutil

import numpy as np
import pydicom
import pytest
from dicom_folders import HEAD, change, convert, scan_geometry, several, stored, write_enhanced
from hypothesis import given
from hypothesis import strategies as st

from haemex.convert import convert_scan
from haemex.errors import InputError
from haemex.series import (
    Series,
    choose_series,
    find_series,
    list_series,
    plan_series,
    series_warnings,
)
from haemex.series_kind import is_bone_kernel


def test_the_right_series_is_taken(tmp_path, write_series):
    thin = np.arange(0, 110, 2.5)
    axial = ("ORIGINAL", "PRIMARY", "AXIAL")
    folder = several(
        tmp_path,
        write_series,
        scout=(
            [0.0],
            {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        ),
        bone=(HEAD, {"ConvolutionKernel": "Hr64f"}),
        thin=(thin, {"SliceThickness": 2.5}),
        soft=(HEAD, {"ImageType": [*axial, "HELIX"], "ConvolutionKernel": ["Hr38f", "3"]}),
        reformat=(HEAD, {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}),
        coronal=(HEAD, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}),
        angiography=(HEAD, {"ContrastBolusAgent": "Iomeron 400"}),
        screen=([0.0], {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None}),
        derived=(HEAD, {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}),
        part=(HEAD[:9], {}),
        magnetic=(HEAD, {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}),
        chest=(HEAD, {"BodyPartExamined": "CHEST"}),
        enhanced=([0.0], {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}),
        perfusion=(np.tile(HEAD[:5], 4), {}),
    )
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty").write_bytes(b"")
    taken, others = find_series(folder, 5.0)
    assert (taken.number, len(taken.headers), taken.kernel, taken.reason) == (4, 22, "Hr38f", "")
    assert {one.number: one.reason for one in others} == {
        1: "a scout",
        2: "bone kernel",
        3: "slice thickness 2.5 mm, farther from 5 mm",
        5: "a reformat",
        6: "not axial",
        7: "with contrast medium",
        8: "a screen or another secondary image",
        9: "derived images, where original ones are there",
        10: "covers only 40 mm",
        11: "modality MR, not CT",
        12: "a body part other than the head",
        13: "multi-frame CT that does not say where its frames lie",
        14: "the same positions again and again (dynamic or perfusion)",
    }
    _, _, description = convert(folder, tmp_path)
    assert description["series"]["taken"] == {
        **{"label": "4", "number": 4, "files": 22},
        **{"slice_thickness_mm": 5.0, "kernel": "Hr38f"},
    }
    assert description["series"]["others"][1] == {
        **{"label": "2", "number": 2, "files": 22},
        "reason": "bone kernel",
    }
    assert find_series(folder, 1.0)[0].number == 3


def test_scout_inside_the_same_series(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)))
    write_series(
        tmp_path / "a" / "sub",
        [0.0],
        stored(1),
        SeriesInstanceUID=pydicom.dcmread(folder / "000").SeriesInstanceUID,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    taken, others = find_series(folder, 5.0)
    assert (len(taken.headers), len(others), others[0].reason) == (22, 1, "a scout")


def test_only_a_bone_kernel_is_better_than_nothing(tmp_path, write_series):
    folder = several(tmp_path, write_series, bone=(HEAD, {"ConvolutionKernel": "H70h"}))
    assert find_series(folder, 5.0)[0].bone


def test_a_soft_derived_series_goes_before_an_original_bone_kernel(tmp_path, write_series):
    soft = (HEAD, {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]})
    folder = several(tmp_path, write_series, bone=(HEAD, {"ConvolutionKernel": "H70h"}), soft=soft)
    assert find_series(folder, 5.0)[0].number == 2


def test_two_equal_series_are_refused_without_their_descriptions(tmp_path, write_series, identity):
    folder = several(tmp_path, write_series, one=(HEAD, {}), two=(HEAD, {}))
    with pytest.raises(InputError) as caught:
        find_series(folder, 5.0)
    assert "2 series fit equally well: series 1 (22 files, 5 mm); series 2 (22 files, 5 mm)" in str(caught.value)
    assert not any(word.lower() in caught.value.problem.lower() for word in identity)


@pytest.mark.parametrize(
    ("tag", "value", "what"), [("PatientID", "ID4712", "patients"), ("StudyInstanceUID", "1.2.3", "studies")]
)
def test_head_ct_of_two_patients_or_studies_in_one_folder(tmp_path, write_series, identity, tag, value, what):
    thin = {"SliceThickness": 1.0}  # by thickness alone there would be a choice
    folder = several(tmp_path, write_series, mine=(HEAD, {}), other=(HEAD, {**thin, tag: value}))
    with pytest.raises(InputError, match=f"the folder holds head CT of 2 {what}: series 1 ") as caught:
        find_series(folder, 5.0)
    assert not any(word in str(caught.value) for word in (*identity, value))
    assert find_series(folder, 5.0, "2")[0].label == "2"  # a pin says whom


def test_three_acquisitions_of_the_same_slices_are_dynamic(tmp_path, write_series):
    def acquisition(index, dataset):
        dataset.AcquisitionNumber = 1 + index // len(HEAD)

    heights = np.tile(HEAD, 3)
    write_series(tmp_path / "a", heights, stored(len(heights)), edit=acquisition)
    [one] = list_series(tmp_path / "a")
    assert one.reason == "the same positions again and again (dynamic or perfusion)" and not one.pinnable
    # and as frames of one file
    write_series(tmp_path / "b", HEAD, stored(len(HEAD)))
    [frames] = list_series(write_enhanced(tmp_path / "b", tmp_path / "c/file", order=[*range(len(HEAD))] * 3))
    assert (frames.reason, frames.slices, frames.files) == (one.reason, 3 * len(HEAD), 1)


def test_repeated_acquisition_in_one_series_is_refused(tmp_path, write_series):
    pixels = stored(2 * len(HEAD))
    folder = write_series(
        tmp_path / "a", np.tile(HEAD, 2), pixels, edit=lambda i, d: setattr(d, "AcquisitionNumber", 1 + i // 22)
    )
    with pytest.raises(InputError, match="2 series fit equally well"):
        find_series(folder, 5.0)


@pytest.mark.parametrize(
    ("tags", "heights", "problem"),
    [
        ({"Modality": "MR"}, HEAD, r"series 3 \(22 files, 5 mm\): modality MR, not CT"),
        ({"SamplesPerPixel": 3}, HEAD, "colour"),
        ({}, HEAD[:4], "only 4 slices"),
        ({"SeriesDescription": "CTA head"}, HEAD, "with contrast medium"),
        ({"ImagePositionPatient": None}, HEAD, "without position"),
    ],
)
def test_no_series_fits(tmp_path, write_series, tags, heights, problem):
    folder = write_series(tmp_path / "a", heights, stored(len(heights)), **tags)
    with pytest.raises(InputError, match=problem):
        find_series(folder, 5.0)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_series(tmp_path / "absent", 5.0)
    with pytest.raises(InputError, match="no DICOM image"):
        find_series(tmp_path, 5.0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="single file"):
        find_series(tmp_path / "file", 5.0)


def test_linked_folders_are_read_once(tmp_path, write_series):
    folder = write_series(tmp_path / "archive" / "a", HEAD, stored(len(HEAD)))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "scan").symlink_to(folder)
    (tmp_path / "study" / "again").symlink_to(folder)
    (folder / "loop").symlink_to(tmp_path / "study")
    assert len(find_series(tmp_path / "study", 5.0)[0].headers) == 22


@pytest.mark.parametrize(
    ("kernel", "manufacturer", "bone"),
    [
        ("STANDARD", "GE MEDICAL SYSTEMS", False),
        ("STD+", "GE MEDICAL SYSTEMS", False),
        ("BONEPLUS", "GE MEDICAL SYSTEMS", True),
        ("H31s", "SIEMENS", False),
        ("J40s", "SIEMENS", False),
        ("Hr38f", "SIEMENS", False),
        ("Hr64h", "SIEMENS", True),
        ("H60s", "SIEMENS", True),
        ("UB", "Philips", False),
        ("YC", "Philips", True),
        ("D", "Philips", True),
        ("D", "Other", False),
        ("FC21", "TOSHIBA", False),
        ("FC30", "TOSHIBA", True),
        ("FC64", "TOSHIBA", True),
        (None, "", False),
    ],
)
def test_bone_kernels_by_vendor(kernel, manufacturer, bone):
    assert is_bone_kernel(kernel, manufacturer) is bone


# ---------------------------------------------------------------- labels and pins


def test_labels_do_not_depend_on_the_names_of_the_files(tmp_path, write_series):
    def parts(names):
        folder = tmp_path / names[0]
        for name, (number, acquisition) in zip(names, ((3, 2), (3, 1), (None, 1), (7, 1)), strict=True):
            write_series(
                folder / name, HEAD, stored(len(HEAD)), SeriesNumber=number, AcquisitionNumber=acquisition,
                SeriesInstanceUID=f"1.2.{number or 5}.{acquisition}", SliceThickness=acquisition + (number or 0),
            )  # fmt: skip
        return [(one.label, one.slice_thickness_mm) for one in list_series(folder)]

    expected = [("3.1", 4.0), ("3.2", 5.0), ("7", 8.0), ("x1", 1.0)]
    assert parts("abcd") == expected
    assert parts("zyxw") == expected


def test_a_pin_settles_a_tie(tmp_path, write_series):
    folder = several(tmp_path, write_series, one=(HEAD, {}), two=(HEAD, {}))
    with pytest.raises(InputError) as caught:
        find_series(folder, 5.0)
    assert "put its label, e.g. 1, into `baseline_series` (or `followup_series`)" in caught.value.action
    for wanted in ("2", " 2", "2.0", 2):  # as spreadsheets and hands write it
        taken, others = find_series(folder, 5.0, wanted)
        assert (taken.label, taken.pinned, taken.reason) == ("2", True, "")
        assert [(one.label, one.reason) for one in others] == [("1", "series 2 is pinned in the cohort table")]
    assert series_warnings(taken, others) == []


def test_a_pin_overrules_the_rule_and_keeps_its_reason(tmp_path, write_series):
    folder = several(
        tmp_path,
        write_series,
        soft=(HEAD, {}),
        contrast=(HEAD, {"ContrastBolusAgent": "Iomeron"}),
        thin=(HEAD, {"SliceThickness": 1.0}),
        reformat=(HEAD, {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}),
    )
    for wanted, against in (
        ("2", "with contrast medium"),
        ("3", "slice thickness 1 mm, farther from 5 mm"),
        ("4", "a reformat"),
    ):
        convert_scan(folder, tmp_path / "o.nii.gz", tmp_path / "o.json", 5.0, series=wanted)
        description = json.loads((tmp_path / "o.json").read_text())
        taken = description["series"]["taken"]
        assert (taken["label"], taken["pinned"], taken["against"]) == (wanted, True, against)
        assert description["series"]["others"][0]["reason"] == f"series {wanted} is pinned in the cohort table"
        problem = f"series {wanted} is pinned in the cohort table against the rule: {against}"
        assert description["warnings"][0]["problem"] == problem
        assert scan_geometry(folder, 5.0, wanted) == description["geometry"]
    assert "pinned" not in convert(folder, tmp_path)[2]["series"]["taken"]


def test_a_pin_that_cannot_be_followed(tmp_path, write_series):
    folder = several(
        tmp_path, write_series, soft=(HEAD, {}), coronal=(HEAD, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]})
    )
    with pytest.raises(InputError, match=r"no series 9 .*: series 1 \(22 files, 5 mm\); series 2 .*: not axial"):
        find_series(folder, 5.0, "9")
    with pytest.raises(InputError, match="cannot be used: not axial"):
        find_series(folder, 5.0, "2")


def test_the_only_axial_reformat_can_be_pinned(tmp_path, write_series):
    folder = several(
        tmp_path,
        write_series,
        report=([0.0], {"Modality": "SR"}),
        reformat=(HEAD, {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}),
    )
    with pytest.raises(InputError, match=r"series 2 \(22 files, 5 mm\): a reformat") as caught:
        find_series(folder, 5.0)
    assert caught.value.action.startswith("if one of them is right, put its label, e.g. 2, into `baseline_series`")
    assert find_series(folder, 5.0, "2")[0].reason == "a reformat"


def test_a_long_listing_is_shortened(tmp_path, write_series):
    for number in range(40):
        write_series(tmp_path / "study" / str(number), [0.0], stored(1), SeriesNumber=number)
    with pytest.raises(InputError, match="and 28 more"):
        find_series(tmp_path / "study", 5.0)


# ---------------------------------------------------------------- what descriptions and tags say


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SeriesDescription": "Head w/o 5.0"}, ""),
        ({"SeriesDescription": "HEAD WITHOUT IV CONTRAST"}, ""),
        ({"SeriesDescription": "Head_W_O_contrast"}, ""),
        ({"SeriesDescription": "CCT nativ 5.0 H31s"}, ""),
        ({"SeriesDescription": "NCCT", "ProtocolName": "5.1 CTA HEAD"}, ""),
        ({"SeriesDescription": "Head 5.0", "ProtocolName": "Kopf nativ + CTA"}, ""),
        ({"SeriesDescription": "unenhanced"}, ""),
        ({"SeriesDescription": "head C-"}, ""),
        ({"SeriesDescription": "pre contrast", "ContrastBolusAgent": "NO CONTRAST GIVEN"}, ""),
        ({"SeriesDescription": "head C+"}, "with contrast medium"),
        ({"SeriesDescription": "CCT nach KM"}, "with contrast medium"),
        ({"SeriesDescription": "post contrast"}, "with contrast medium"),
        ({"SeriesDescription": "Head 5.0", "ProtocolName": "5.1 CTA HEAD"}, "with contrast medium"),
        ({"ImageComments": "arterial phase"}, "with contrast medium"),
        ({"ContrastBolusVolume": 50}, "with contrast medium"),
        ({"ContrastBolusVolume": 0, "ContrastBolusAgent": "NONE"}, ""),
        ({"SeriesDescription": "nativ", "ContrastBolusAgent": "Ultravist 370"}, "with contrast medium"),
        ({"ContrastBolusAgent": "NON-IONIC"}, "with contrast medium"),
        ({"ContrastBolusAgent": "No IV contrast given"}, ""),
        ({"ContrastBolusAgent": "", "ContrastBolusTotalDose": 80}, "with contrast medium"),
        ({"ContrastBolusAgent": "", "ContrastFlowRate": [4, 4]}, "with contrast medium"),
        ({"ContrastBolusAgent": "", "ContrastBolusIngredient": "IODINE"}, "with contrast medium"),
        ({"ContrastBolusAgentSequence": [pydicom.Dataset()]}, "with contrast medium"),
        ({"ContrastBolusAgentSequence": []}, ""),
        ({"SeriesDescription": "HEAD NONCON", "ProtocolName": "CTA HEAD"}, ""),
        ({"SeriesDescription": "Head w.o. contrast"}, ""),
        ({"SeriesDescription": "CRANEO S/CONTRASTE"}, ""),
        ({"SeriesDescription": "CRANIO SEM CONTRASTE"}, ""),
        ({"SeriesDescription": "hoofd zonder contrast"}, ""),
        ({"SeriesDescription": "Kopf o.KM"}, ""),
        ({"SeriesDescription": "CRANE SANS INJECTION"}, ""),
        ({"SeriesDescription": "head injury", "ProtocolName": "post injury"}, ""),
        ({"SeriesDescription": "CRANE INJECTE"}, "with contrast medium"),
        ({"SeriesDescription": "CRANE IV+"}, "with contrast medium"),
        ({"SeriesDescription": "ENCEFALO CON MDC"}, "with contrast medium"),
        ({"SeriesDescription": "HEAD POST CON"}, "with contrast medium"),
        ({"BodyPartExamined": "HEAD", "SeriesDescription": "Thorax 5.0"}, ""),
        ({"BodyPartExamined": "HEART"}, "a body part other than the head"),
        ({"BodyPartExamined": "EAR"}, "a part of the head other than the brain"),
        ({"BodyPartExamined": "HARMONY"}, ""),
        ({"SeriesDescription": "Thorax 5.0"}, "a body part other than the head"),
        ({"SeriesDescription": "5.0 B31", "StudyDescription": "CT ABD/PELVIS"}, "a body part other than the head"),
        ({"SeriesDescription": "5.0", "StudyDescription": "CT head and chest"}, ""),
        ({"SeriesDescription": "Head/Neck"}, ""),
        ({"SeriesDescription": "college"}, ""),
        ({"SeriesDescription": "sinuses"}, "a part of the head other than the brain"),
        ({"SeriesDescription": "MonoE 70 keV"}, "computed from other images"),
        ({"SeriesDescription": "Virtual Non Contrast"}, "computed from other images"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VMI"]}, "computed from other images"),
        ({"SeriesDescription": "AX head CTAC"}, "made for attenuation correction"),
        ({"BurnedInAnnotation": "YES"}, "text burned into the images"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "a projection"),
        ({"RescaleType": "Z_EFF"}, "values that are no Hounsfield units"),
        ({"RescaleType": "US"}, ""),
        ({"NumberOfFrames": 2}, "multi-frame CT that does not say where its frames lie"),
    ],
)
def test_what_speaks_against_a_series(tmp_path, write_series, identity, tags, reason):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)), **{"SeriesDescription": None, **tags})
    (one,) = list_series(folder)
    assert one.reason.startswith(reason) if reason else one.reason == ""
    assert not any(
        str(text).lower() in one.reason.lower() for text in (*tags.values(), *identity) if len(str(text)) > 5
    )


def test_a_word_about_contrast_on_a_single_slice_counts(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)), edit=change("ContrastBolusAgent", "Iomeron", 2))
    (one,) = list_series(folder)
    assert (one.slices, one.reason) == (22, "with contrast medium")


def test_more_than_a_head(tmp_path, write_series):
    (one,) = list_series(write_series(tmp_path / "a", np.arange(0, 400, 5.0), stored(80)))
    assert (one.reason, one.pinnable) == ("longer than a head", True)


def test_a_bone_kernel_by_its_description_is_taken_with_a_warning(tmp_path, write_series):
    tags = {"ConvolutionKernel": None, "SeriesDescription": "Schädel Knochen"}
    taken, others = find_series(write_series(tmp_path / "a", HEAD, stored(len(HEAD)), **tags), 5.0)
    assert taken.bone
    assert "bone or lung" in series_warnings(taken, others)[0]["problem"]


# ---------------------------------------------------------------- several stacks under one UID


def doubled(change_tags, shift=0.0):
    """Two stacks of HEAD in one series, the second with other tags; heights and the edit."""

    def edit(index, dataset):
        if index >= len(HEAD):
            for keyword, value in change_tags.items():
                setattr(dataset, keyword, value)

    return np.concatenate([HEAD, HEAD + shift]), edit


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        ({"ConvolutionKernel": "Hr64f"}, "Hr38f"),
        ({"PixelSpacing": [1.0, 0.5], "ConvolutionKernel": "H70h"}, "Hr38f"),
        ({"SliceThickness": 3.0, "ImageOrientationPatient": [1, 0, 0, 0, 0.98, 0.199]}, "Hr38f"),
    ],
)
def test_stacks_upon_each_other_are_told_apart(tmp_path, write_series, tags, taken, shift):
    heights, edit = doubled(tags, shift)
    folder = write_series(tmp_path / "a", heights, stored(len(heights)), edit=edit)
    one, others = find_series(folder, 5.0)
    assert (one.slices, one.kernel, [other.slices for other in others]) == (22, taken, [22])
    assert plan_series(one)[1]["even"]


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_a_second_acquisition_is_a_candidate_of_its_own(tmp_path, write_series, shift):
    heights, edit = doubled({"AcquisitionNumber": 2}, shift)
    folder = write_series(tmp_path / "a", heights, stored(len(heights)), edit=edit)
    with pytest.raises(InputError, match=r"2 series fit equally well: series 3\.1 .*; series 3\.2"):
        find_series(folder, 5.0)
    assert plan_series(find_series(folder, 5.0, "3.2")[0])[1]["acquired_positions_mm"] == list(HEAD + shift)


def test_acquisitions_that_follow_or_interleave_are_one_scan(tmp_path, write_series):
    for name, number in (("blocks", lambda index: index // 8), ("odd and even", lambda index: index % 2)):
        folder = write_series(
            tmp_path / name,
            HEAD,
            stored(22),
            edit=lambda i, d, number=number: setattr(d, "AcquisitionNumber", number(i)),
        )
        assert find_series(folder, 5.0)[0].slices == 22


def test_a_repeated_block_leaves_the_whole_scan(tmp_path, write_series):
    heights = np.concatenate([HEAD, HEAD[5:11]])
    folder = write_series(
        tmp_path / "a", heights, stored(28), edit=lambda i, d: setattr(d, "AcquisitionNumber", 1 + i // 22)
    )
    taken, others = find_series(folder, 5.0)
    assert (taken.slices, [one.reason for one in others]) == (22, ["covers only 25 mm"])


def test_copies_of_all_files_are_no_second_scan(tmp_path, write_series):
    folder = write_series(tmp_path / "study" / "a", HEAD, stored(22))
    alone = convert(folder, tmp_path, "alone")
    for name in "bcd":
        shutil.copytree(folder, tmp_path / "study" / name)
    copied = convert(tmp_path / "study", tmp_path, "copied")
    assert copied[2]["pixel_digest"] == alone[2]["pixel_digest"]
    assert copied[2]["geometry"] == alone[2]["geometry"]


def test_a_second_image_is_refused_before_anything_is_converted(tmp_path, write_series):
    folder = write_series(tmp_path / "a", np.append(HEAD, HEAD[3]), stored(23))
    with pytest.raises(InputError, match="position of slice 4 shows something else"):
        scan_geometry(folder, 5.0)


def test_slices_set_apart_from_the_end_of_a_scan_are_missed(tmp_path, write_series):
    folder = write_series(
        tmp_path / "a", HEAD, stored(22), edit=change("ImageType", ["DERIVED", "SECONDARY", "AXIAL"], at=21)
    )
    with pytest.raises(InputError, match=r"series 3\.\d \(1 slices, only 1 slice\) continues series 3\.\d"):
        find_series(folder, 5.0)


@pytest.mark.parametrize(("low", "high"), [(14, 32), (25, 12)], ids=["the upper part", "the lower part"])
def test_a_head_scanned_in_two_parts_that_overlap_is_not_cut_short(tmp_path, write_series, low, high):
    # The longer part covers 100 mm and would pass for a whole head.
    heights = np.concatenate([np.arange(low), np.arange(low - 4, low + high)]) * 5.0
    folder = write_series(
        tmp_path / "a", heights, stored(len(heights)), edit=lambda i, d: setattr(d, "AcquisitionNumber", 1 + (i >= low))
    )
    with pytest.raises(InputError, match=r"goes on where series .* ends: the head may be in two parts") as caught:
        find_series(folder, 5.0)
    assert "put the label of the part that shows all of the haematoma" in caught.value.action
    assert find_series(folder, 5.0, "3.2")[0].slices == high + 4


def test_many_slices_set_apart_from_a_scan_are_missed_too(tmp_path, write_series):
    def edit(index, dataset):
        if index >= 22:
            dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]

    folder = write_series(tmp_path / "a", np.arange(30) * 5.0, stored(30), edit=edit)
    with pytest.raises(InputError, match=r"series 3\.2 \(8 slices, images derived .*\) goes on where series 3\.1"):
        find_series(folder, 5.0)


@pytest.mark.parametrize(
    "tags", [{"ConvolutionKernel": "Hr64f"}, {"AcquisitionNumber": 2, "ContrastBolusAgent": "Iomeron"}]
)
def test_another_reconstruction_or_phase_may_be_longer(tmp_path, write_series, tags):
    heights = np.concatenate([HEAD, np.append(HEAD, 110.0)])

    def edit(index, dataset):
        if index >= 22:
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)

    folder = write_series(tmp_path / "a", heights, stored(len(heights)), edit=edit)
    assert find_series(folder, 5.0)[0].slices == 22


def test_a_folder_that_holds_nifti(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="there is no DICOM image") as caught:
        find_series(tmp_path, 5.0)
    assert caught.value.action == "name the NIfTI file, not its folder"


@given(data=st.data())
def test_the_choice_does_not_depend_on_the_order(data):
    names = ["b", "a", "c", "d"]
    series = [
        fake(label=name, thickness=data.draw(st.sampled_from([1.0, 5.0, None])), bone=data.draw(st.booleans()))
        for name in names
    ]

    def outcome(listed):
        try:
            return choose_series(listed, 5.0, "x")[0].label
        except InputError as error:
            return len(error.problem)

    assert outcome(series) == outcome(data.draw(st.permutations(series)))


def fake(label, thickness, bone):
    header = pydicom.Dataset()
    header.SeriesInstanceUID, header.filename = label, label
    return Series(
        headers=(header,), label=label, number=None, files=1, matrix=None, slice_thickness_mm=thickness, kernel=None,
        bone=bone, derived=False, plane="axial", slices=1, coverage_mm=120.0, reason="",
    )  # fmt: skip


def test_what_the_page_shows_of_an_enhanced_series(tmp_path, write_series):
    enhanced = write_enhanced(write_series(tmp_path / "a", HEAD, stored(22)), tmp_path / "b" / "x")
    (one,) = list_series(enhanced)
    assert (one.label, one.files, one.slices, one.matrix, one.plane) == ("3", 1, 22, (6, 4), "axial")
    assert (one.kernel, one.slice_thickness_mm, one.coverage_mm) == ("Hr38f", 5.0, 105.0)
