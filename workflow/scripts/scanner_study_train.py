"""Train the candidate of the scanner study without the patients of one scanner, and predict those."""

from pathlib import Path

from haemex.cohort import read_cohort
from haemex.logs import announce, log_to
from haemex.scanners import read_scanners, refuse_unknown_scanners, sides_without
from haemex.training import train_network

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        scanner = snakemake.params.scanner
        announce(f"scanner study: without {scanner}")
        members = [member for member in read_cohort(snakemake.input.cohort) if member["cohort"] == "train"]
        labels = {member["patient"]: member["expansion"] for member in members}
        scanner_of = read_scanners(labels, Path(snakemake.input.conversions[0]).parent)
        refuse_unknown_scanners(snakemake.config["scanner_study"]["scanners"], scanner_of)
        trained, left_out = sides_without(scanner, scanner_of, labels)
        train_network(
            patients=trained,
            validation=left_out,
            labels=labels,
            digests={member["patient"]: member["pixel_digest"] for member in members},
            augment_folder=Path(snakemake.input.copies[0]).parent,
            scan_folder=Path(snakemake.input.scans[0]).parent,
            network=snakemake.params.network,
            training=snakemake.params.training,
            seed=snakemake.params.seed,
            purpose=f"train {snakemake.params.candidate} without {scanner}",
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
