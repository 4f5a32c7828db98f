# The NCCT markers once more, computed from CT and mask: a second opinion beside the reader's.
# In: CT of convert, mask of measure, the table's readings.  Out: decisions and measures (JSON), voxels (NIfTI), picture.


rule markers:
    """Decide a patient's NCCT markers from the CT, and show what decided them."""
    input:
        ct="<results>/convert/{patient}_baseline.nii.gz",
        haematoma="<results>/measure/{patient}_haematoma.nii.gz",
    output:
        json="<results>/markers/{patient}.json",
        voxels="<results>/markers/{patient}_markers.nii.gz",
        png="<results>/markers/{patient}.png",
    log:
        "<results>/markers/{patient}.log",
    benchmark:
        "<results>/markers/{patient}.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        onset_to_ct_h=lambda w: study.rows[w.patient]["onset_to_ct_h"],
        read=lambda w: study.readings(w.patient),
        code=code_version("markers"),
    script:
        "../scripts/markers.py"
