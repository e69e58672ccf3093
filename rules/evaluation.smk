"""Segmentations and ground truth → scores → the report."""


rule sweep:
    """VOI and ARAND at every threshold, from one table of fragments against labels."""
    input:
        fragments=results("{model}/{volume}/fragments.json"),
        agglomeration=results("{model}/{volume}/agglomeration.json"),
        labels=results("volumes/{volume}/labels.json"),
    output:
        manifest=results("{model}/{volume}/sweep.json"),
    log:
        results("{model}/{volume}/logs/sweep.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/sweep.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: cores(CPU_CORES)
    resources:
        **asks(4 * HOUR, 8_000),
    params:
        task=lambda wildcards: as_json(
            tasks.SweepTask(
                **manifests(
                    wildcards,
                    fragments="{model}/{volume}/fragments.json",
                    agglomeration="{model}/{volume}/agglomeration.json",
                    labels="volumes/{volume}/labels.json",
                    manifest="{model}/{volume}/sweep.json",
                ),
                options=SCORING,
                part=tune_part(wildcards),
                **SECTIONS,
            )
        ),
    shell:
        f"python -m kdseg sweep --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER} > {{log:q}} 2>&1"


rule score:
    """VOI and ARAND of one model's segmentation."""
    input:
        segmentation=results("{model}/{volume}/segmentation.json"),
        labels=results("volumes/{volume}/labels.json"),
        sweep=results("{model}/{volume}/sweep.json"),
    output:
        manifest=results("{model}/{volume}/scores.json"),
    log:
        results("{model}/{volume}/logs/score.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/score.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: cores(CPU_CORES)
    resources:
        **asks(4 * HOUR, 8_000, sharing=2),
    params:
        task=lambda wildcards: as_json(
            tasks.ScoreTask(
                **manifests(
                    wildcards,
                    segmentation="{model}/{volume}/segmentation.json",
                    labels="volumes/{volume}/labels.json",
                    sweep="{model}/{volume}/sweep.json",
                    manifest="{model}/{volume}/scores.json",
                ),
                model=wildcards.model,
                volume=wildcards.volume,
                options=SCORING,
                **SECTIONS,
            )
        ),
    shell:
        f"python -m kdseg score --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER} > {{log:q}} 2>&1"


rule score_baseline:
    """VOI and ARAND of somebody else's segmentation of the same tissue."""
    input:
        segmentation=results("volumes/{volume}/baseline.json"),
        labels=results("volumes/{volume}/labels.json"),
    output:
        manifest=results("baseline/{volume}/scores.json"),
    log:
        results("baseline/{volume}/logs/score.log"),
    benchmark:
        results("baseline/{volume}/benchmarks/score.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: cores(CPU_CORES)
    resources:
        **asks(4 * HOUR, 8_000),
    params:
        task=lambda wildcards: as_json(
            tasks.ScoreTask(
                **manifests(
                    wildcards,
                    segmentation="volumes/{volume}/baseline.json",
                    labels="volumes/{volume}/labels.json",
                    manifest="baseline/{volume}/scores.json",
                ),
                model="baseline",
                volume=wildcards.volume,
                options=SCORING,
                **SECTIONS,
            )
        ),
    shell:
        f"python -m kdseg score --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER} > {{log:q}} 2>&1"


rule tune_model:
    """Post-processing options and a threshold for one network, from parts of labelled volumes."""
    input:
        lambda wildcards: leaves(tuned_volumes(wildcards)),
    output:
        manifest=results("{model}/tuned.json"),
    log:
        results("{model}/logs/tune_segmentation.log"),
    benchmark:
        results("{model}/benchmarks/tune_segmentation.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: cores(CPU_CORES)
    resources:
        **asks(DAY, estimates.SEARCH_MB),
    params:
        task=lambda wildcards: as_json(
            tasks.TuneSegmentationTask(
                **manifests(wildcards, manifest="{model}/tuned.json"),
                **tuned_volumes(wildcards),
                options=RUN.tune_segmentation,
                fragments=RUN.fragments,
                edges=RUN.edges,
                agglomerate=RUN.agglomerate,
                dust=RUN.evaluate.dust,
            )
        ),
    shell:
        f"python -m kdseg tune-segmentation --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER} > {{log:q}} 2>&1"


use rule tune_model as tune_together with:
    # for all scored networks, each on the same parts
    input:
        lambda wildcards: leaves(shared_search()["volumes"]),
    output:
        manifest=results("tuned.json"),
    log:
        results("logs/tune_segmentation.log"),
    benchmark:
        results("benchmarks/tune_segmentation.tsv")
    params:
        task=lambda wildcards: as_json(
            tasks.TuneSegmentationTask(
                manifest=results("tuned.json"),
                **shared_search(),
                fragments=RUN.fragments,
                edges=RUN.edges,
                agglomerate=RUN.agglomerate,
                dust=RUN.evaluate.dust,
            )
        ),


rule tune_segmentation:
    """The options that suit each model best, or all of them, as lines of YAML in the log."""
    input:
        tuned=tuned,


rule report:
    """One page: table, curves, slices, the graph of the run."""
    input:
        scores=evaluated,
    output:
        page=results("report.html"),
    log:
        results("logs/report.log"),
    benchmark:
        results("benchmarks/report.tsv")
    localrule: True  # seconds, and a job of SLURM would wait longer than that
    conda:
        "../envs/kdseg.yaml"
    threads: 1
    resources:
        **asks(HOUR, 8_000),
    params:
        task=lambda wildcards: as_json(
            tasks.ReportTask(config=RUN, out=results("report.html"))
        ),
    shell:
        "python -m kdseg report --task {params.task:q} > {log:q} 2>&1"
