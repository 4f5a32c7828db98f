"""Train the candidate of the seed study with one seed without one fold, and predict that fold."""

from pathlib import Path

from haemex.cohort import read_cohort
from haemex.logs import announce, log_to
from haemex.training import train_network

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        seed, fold = int(snakemake.wildcards.seed), int(snakemake.wildcards.fold)
        announce(f"seed study: seed {seed}, fold {fold}")
        members = [member for member in read_cohort(snakemake.input.cohort) if member["cohort"] == "train"]
        train_network(
            patients=[member["patient"] for member in members if member["fold"] != fold],
            validation=[member["patient"] for member in members if member["fold"] == fold],
            labels={member["patient"]: member["expansion"] for member in members},
            digests={member["patient"]: member["pixel_digest"] for member in members},
            augment_folder=Path(snakemake.input.copies[0]).parent,
            scan_folder=Path(snakemake.input.scans[0]).parent,
            network=snakemake.params.network,
            training=snakemake.params.training,
            seed=seed,
            # The name that the rule `train` gives: with the study's own seed this is that training again, bit for bit.
            purpose=f"train {snakemake.params.candidate} fold{fold}",
            weights_path=snakemake.output.weights,
            history_path=snakemake.output.history,
            predictions_path=snakemake.output.predictions,
            roles_path=snakemake.output.roles,
            # Outside the outputs, which Snakemake removes when a job is killed.
            checkpoint_path=Path(snakemake.output.weights).parent.with_suffix(".checkpoint"),
            **snakemake.config["computing"],
            curve_path=snakemake.log.curve,
            events_path=snakemake.log.events,
        )
