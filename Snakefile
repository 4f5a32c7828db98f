"""haemex: the study of Zhong et al. 2021 on early haematoma expansion, from DICOM folders to the report."""

from snakemake.utils import min_version

from haemex.provenance import code_version, folder_version
from haemex.study import make_study, one_sentence

min_version("9.27")


configfile: str(workflow.current_basedir.join("config/config.yaml"))  # from whatever folder it is run


with one_sentence():
    study = make_study(config, main=workflow.is_main_process)


pathvars:
    results=f"results/{config['study']}",


wildcard_constraints:
    patient="[A-Za-z0-9]+",


onstart:
    study.hold(workflow)


for stage in study.stages:

    include: f"workflow/rules/{stage}.smk"


rule all:
    default_target: True
    input:
        study.targets,
