"""kdseg: raw EM in, scored neuron instances out, through a teacher and a distilled student.

Every rule calls one `kdseg` command and declares its small manifest as output, never the big store beside
it: Snakemake deletes the outputs of a failed job, and a store resumes where it stopped.
"""

from snakemake.utils import min_version

min_version("9.26")

if not config:

    configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/resources.smk"
include: "rules/data.smk"
include: "rules/training.smk"
include: "rules/segmentation.smk"
include: "rules/evaluation.smk"
include: "rules/comparison.smk"


rule all:
    """The main job: the report of this configuration, and all that it needs."""
    default_target: True
    input:
        made_of(lambda wildcards: [results("report.html")]),
