# The locked model applied to every patient, of both cohorts or of another centre; no label and no reference mask is read here.
# In: the model bundle, scans on the network's grid, CTs on the acquired grid.  Out: probabilities, haematoma masks,
# maps of where the evidence for expansion lies.


rule predict:
    """Predict expansion, segment the haematoma and map the evidence for expansion, for all patients in one job."""
    input:
        weights=study.of_model(["<results>/final/model/model.safetensors"]),
        ensemble=study.of_model(expand("<results>/final/model/fold{fold}.safetensors", fold=study.folds)),
        card=study.of_model(["<results>/final/model/model.json"]),
        scans=expand("<results>/resample/{patient}_ct.nii.gz", patient=study.patients),
        cts=expand("<results>/convert/{patient}_baseline.nii.gz", patient=study.patients),
    output:
        predictions="<results>/predict/predictions.tsv",
        # One output, not three per patient: Snakemake's record of every output lists all inputs, and each run reads all.
        maps=directory("<results>/predict/maps"),
    log:
        "<results>/predict/predict.log",
    benchmark:
        "<results>/predict/predict.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        gpu=1,
        mem_mb=lambda w, attempt: attempt * 5000,
        runtime=480,
    params:
        patients={"train": study.training, "test": study.testing},
        resample=config["resample"],
        precision=config["predict"]["precision"],
        ensemble=config["predict"]["ensemble"],
        code=code_version("predict"),
    script:
        "../scripts/predict.py"
