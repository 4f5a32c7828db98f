"""Train the final model and pack its bundle."""

import json
from pathlib import Path

from haemex.bundle import write_bundle
from haemex.cohort import read_cohort
from haemex.logs import log_to
from haemex.training import train_network

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        selected = json.loads(Path(snakemake.input.selected).read_text())
        settings = snakemake.params.candidates[selected["candidate"]]
        members = [member for member in read_cohort(snakemake.input.cohort) if member["cohort"] == "train"]
        train_network(
            patients=[member["patient"] for member in members],
            labels={member["patient"]: member["expansion"] for member in members},
            digests={member["patient"]: member["pixel_digest"] for member in members},
            augment_folder=Path(snakemake.input.copies[0]).parent,
            network=settings["network"],
            training=settings["training"],
            seed=snakemake.params.seed,
            purpose="final",
            weights_path=snakemake.output.weights,
            history_path=snakemake.output.history,
            roles_path=snakemake.output.roles,
            checkpoint_path=Path(snakemake.output.history).with_name("final.checkpoint"),
            **snakemake.config["computing"],
            curve_path=snakemake.log.curve,
            events_path=snakemake.log.events,
        )
        write_bundle(
            Path(snakemake.output.card).parent,
            fold_weights=[p for p in snakemake.input.fold_weights if Path(p).parents[1].name == selected["candidate"]],
            network=settings["network"],
            preparation=snakemake.params.preparation,
            threshold=selected["threshold"],
            rule=snakemake.params.operating_point,
            calibration=selected["calibration"],
            training=settings["training"],
            cohort={"patients": len(members), "expansions": sum(member["expansion"] for member in members)},
        )
