# One picture and one row of checks per patient, before any training hour is spent.
# In: CT, masks and JSON of convert, measure, skullstrip, resample.  Out: montage (PNG), numbers and warnings (JSON).


rule inspect:
    """Draw a patient's slices with brain, haematoma and field of view; measure what can be checked."""
    input:
        ct="<results>/convert/{patient}_baseline.nii.gz",
        brain="<results>/skullstrip/{patient}_brain.nii.gz",
        haematoma="<results>/measure/{patient}_haematoma.nii.gz",
        baseline_json="<results>/convert/{patient}_baseline.json",
        followup_json=lambda w: (
            ["<results>/convert/{patient}_followup.json"] if study.has_followup_scan(w.patient) else []
        ),
        skullstrip_json="<results>/skullstrip/{patient}.json",
        measure_json="<results>/measure/{patient}.json",
        resample_json="<results>/resample/{patient}.json",
    output:
        png="<results>/inspect/{patient}.png",
        json="<results>/inspect/{patient}.json",
    log:
        "<results>/inspect/{patient}.log",
    benchmark:
        "<results>/inspect/{patient}.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        field_of_view_mm=config["resample"]["field_of_view_mm"],
        matrix=config["resample"]["matrix"],
        code=code_version("inspect"),
    script:
        "../scripts/inspect.py"
