# Synthetic patients in place of a real cohort; included only where the config has a section `phantom`.
# In: nothing but the config.  Out: DICOM folders and masks, at the paths the synthetic cohort table names, and the truth,
# which no stage of the study reads.


rule phantom:
    """Make one synthetic patient: baseline and follow-up as DICOM series, masks of the haematoma."""
    output:
        baseline=directory("<results>/phantom/{patient}/baseline"),
        followup=directory("<results>/phantom/{patient}/followup"),
        baseline_mask="<results>/phantom/{patient}/baseline_mask.nii.gz",
        followup_mask="<results>/phantom/{patient}/followup_mask.nii.gz",
        baseline_mask_rater2="<results>/phantom/{patient}/baseline_mask_rater2.nii.gz",
        truth=directory("<results>/phantom/{patient}/truth"),
    log:
        "<results>/phantom/{patient}.log",
    benchmark:
        "<results>/phantom/{patient}.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 2000,
        runtime=10,
    params:
        settings=config["phantom"],
        seed=config["seed"],
        code=code_version("phantom"),
    script:
        "../scripts/phantom.py"
