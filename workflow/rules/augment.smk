# Ten volumes of every patient of the training cohort: the scan and transformed copies of it.
# In: CT and haematoma on the network's grid.  Out: all copies in one 4-D NIfTI each, the drawn parameters (JSON).


rule augment:
    """Make the augmented copies of one patient."""
    input:
        ct="<results>/resample/{patient}_ct.nii.gz",
        haematoma="<results>/resample/{patient}_haematoma.nii.gz",
    output:
        ct=study.kept("copies", "<results>/augment/{patient}_ct.nii.gz"),
        haematoma=study.kept("copies", "<results>/augment/{patient}_haematoma.nii.gz"),
        json="<results>/augment/{patient}.json",
    log:
        "<results>/augment/{patient}.log",
    benchmark:
        "<results>/augment/{patient}.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        copies=config["augment"]["copies"],
        include_original=config["augment"]["include_original"],
        scaling_percent=config["augment"]["scaling_percent"],
        translation_percent=config["augment"]["translation_percent"],
        rotation_deg=config["augment"]["rotation_deg"],
        seed=config["seed"],
        code=code_version("augment"),
    script:
        "../scripts/augment.py"
