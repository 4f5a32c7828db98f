# One card per patient for the report: what happened, what the network said and where from, outlines, markers.
# In: labels, predictions of both cohorts, out-of-fold predictions, CTs, both masks, relevance maps, markers, Dice.
# Out: all that the cards print (JSON, worst first) and a picture per patient.


rule cards:
    """Make the cards of all patients in one job, worst first."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        predictions="<results>/predict/predictions.tsv",
        maps="<results>/predict/maps",
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
        pictures=directory("<results>/cards/pictures"),  # one output: see the rule predict
    log:
        "<results>/cards/cards.log",
    benchmark:
        "<results>/cards/cards.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 2000,
        runtime=60,
    params:
        code=code_version("cards"),
    script:
        "../scripts/cards.py"
