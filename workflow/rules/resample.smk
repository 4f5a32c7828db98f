# From the acquired grid to the network's grid, windowed and normalised.
# In: CT, brain mask, haematoma mask.  Out: the same on the network's grid, and what was done (JSON).


rule resample:
    """Bring a scan to the network's grid, window it to 0-100 HU and normalise it in the brain."""
    input:
        ct="<results>/convert/{patient}_baseline.nii.gz",
        brain="<results>/skullstrip/{patient}_brain.nii.gz",
        haematoma="<results>/measure/{patient}_haematoma.nii.gz",
    output:
        ct="<results>/resample/{patient}_ct.nii.gz",
        brain="<results>/resample/{patient}_brain.nii.gz",
        haematoma="<results>/resample/{patient}_haematoma.nii.gz",
        json="<results>/resample/{patient}.json",
    log:
        "<results>/resample/{patient}.log",
    benchmark:
        "<results>/resample/{patient}.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        field_of_view_mm=config["resample"]["field_of_view_mm"],
        matrix=config["resample"]["matrix"],
        spline_order=config["resample"]["spline_order"],
        window_hu=config["resample"]["window_hu"],
        code=code_version("resample"),
    script:
        "../scripts/resample.py"
