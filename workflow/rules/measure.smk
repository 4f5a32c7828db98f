# Haematoma volumes from masks, and the baseline mask on the grid of the converted CT.
# In: masks as the cohort table names them, geometry from convert.  Out: volumes in mL (JSON), mask (NIfTI).


rule measure:
    """Measure a patient's haematoma at baseline and follow-up, in mL."""
    input:
        masks=lambda w: study.given(w.patient, *study.MASKS),
        baseline_ct="<results>/convert/{patient}_baseline.nii.gz",
        baseline_json="<results>/convert/{patient}_baseline.json",
        followup_json=lambda w: (
            ["<results>/convert/{patient}_followup.json"] if study.has_followup_scan(w.patient) else []
        ),
    output:
        json="<results>/measure/{patient}.json",
        haematoma="<results>/measure/{patient}_haematoma.nii.gz",
    log:
        "<results>/measure/{patient}.log",
    benchmark:
        "<results>/measure/{patient}.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        masks=lambda w: {column: study.path(w.patient, column) for column in study.MASKS},
        followup_volume_ml=lambda w: study.rows[w.patient]["followup_volume_ml"],
        code=code_version("measure"),
    script:
        "../scripts/measure.py"
