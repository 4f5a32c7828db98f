# One card per patient for the report: what happened, what the network said and where from, outlines, markers.
# In: labels, predictions of both cohorts, out-of-fold predictions, CTs, both masks, relevance maps, markers, Dice.
# Out: all that the cards print (JSON, worst first) and a picture per patient.


rule cards:
    """Make the cards of all patients in one job, worst first."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        predictions="<results>/predict/predictions.tsv",
        predicted=expand(
            "<results>/predict/{patient}_{volume}.nii.gz",
            patient=study.patients,
            volume=["haematoma", "grid", "relevance"],
        ),
        out_of_fold=study.of_training(["<results>/select/predictions.tsv"]),
        model=study.of_model(["<results>/final/model/model.json"]),
        dice="<results>/evaluate/dice.tsv",
        cts=expand("<results>/convert/{patient}_baseline.nii.gz", patient=study.patients),
        measured=expand(
            "<results>/measure/{patient}{part}", patient=study.patients, part=[".json", "_haematoma.nii.gz"]
        ),
        markers=expand("<results>/markers/{patient}.json", patient=study.patients),
    output:
        cards="<results>/cards/cards.json",
        pictures=expand("<results>/cards/{patient}.png", patient=study.patients),
    log:
        "<results>/cards/cards.log",
    benchmark:
        "<results>/cards/cards.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    params:
        code=code_version("cards"),
    script:
        "../scripts/cards.py"
