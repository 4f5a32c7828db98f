# DICOM to NIfTI in Hounsfield units, on the acquired grid.
# In: a scan as the cohort table names it.  Out: NIfTI, and a JSON with acquisition, geometry and the series taken.


rule convert:
    """Choose the right series of a scan and write it as NIfTI in HU."""
    input:
        scan=lambda w: study.given(w.patient, f"{w.timepoint}_ct"),
    output:
        nifti=study.kept("converted", "<results>/convert/{patient}_{timepoint}.nii.gz"),
        json="<results>/convert/{patient}_{timepoint}.json",
    log:
        "<results>/convert/{patient}_{timepoint}.log",
    benchmark:
        "<results>/convert/{patient}_{timepoint}.benchmark.tsv"
    wildcard_constraints:
        timepoint="baseline|followup",
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 2000,
        runtime=10,
    params:
        scan=lambda w: study.path(w.patient, f"{w.timepoint}_ct"),
        listing=lambda w: study.listing(w.patient, f"{w.timepoint}_ct"),
        series=lambda w: study.path(w.patient, f"{w.timepoint}_series"),
        slice_thickness_mm=config["convert"]["slice_thickness_mm"],
        code=code_version("convert"),
    script:
        "../scripts/convert.py"
