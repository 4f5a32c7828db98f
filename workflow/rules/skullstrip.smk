# The brain, found by Otsu's method.
# In: the converted baseline CT.  Out: brain mask on its grid, thresholds and volume (JSON).


rule skullstrip:
    """Strip the skull with Otsu's thresholds."""
    input:
        ct="<results>/convert/{patient}_baseline.nii.gz",
    output:
        brain="<results>/skullstrip/{patient}_brain.nii.gz",
        json="<results>/skullstrip/{patient}.json",
    log:
        "<results>/skullstrip/{patient}.log",
    benchmark:
        "<results>/skullstrip/{patient}.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        seal_gap_mm=config["skullstrip"]["seal_gap_mm"],
        min_brain_ml=config["skullstrip"]["min_brain_ml"],
        plausible_brain_ml=config["skullstrip"]["plausible_brain_ml"],
        code=code_version("skullstrip"),
    script:
        "../scripts/skullstrip.py"
