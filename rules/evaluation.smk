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
    threads: RUN.workers
    resources:
        mem_mb=8_000,
        runtime="4h",
    params:
        options=options("evaluate"),
        part=tune_part,
    shell:
        "python -m kdseg sweep --fragments {input.fragments} --agglomeration {input.agglomeration}"
        " --labels {input.labels} --manifest {output.manifest} --options {params.options:q} {params.part}"
        " --workers {threads} > {log} 2>&1"


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
    threads: RUN.workers
    resources:
        mem_mb=8_000,
        runtime="4h",
    params:
        options=options("evaluate"),
    shell:
        "python -m kdseg score --segmentation {input.segmentation} --labels {input.labels}"
        " --sweep {input.sweep} --name {wildcards.model} --volume {wildcards.volume}"
        " --manifest {output.manifest} --options {params.options:q}"
        " --workers {threads} > {log} 2>&1"


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
    threads: RUN.workers
    resources:
        mem_mb=8_000,
        runtime="4h",
    params:
        options=options("evaluate"),
    shell:
        "python -m kdseg score --segmentation {input.segmentation} --labels {input.labels}"
        " --name baseline --volume {wildcards.volume}"
        " --manifest {output.manifest} --options {params.options:q}"
        " --workers {threads} > {log} 2>&1"


rule report:
    """One page: table, curves, slices, the graph of the run."""
    input:
        scores=expand(
            results("{model}/{volume}/scores.json"),
            model=RUN.evaluate.models,
            volume=RUN.evaluate.volumes,
        ),
        baselines=[
            results(f"baseline/{volume}/scores.json")
            for volume in RUN.evaluate.volumes
            if RUN.volumes[volume].baseline
        ],
    output:
        page=results("report.html"),
    log:
        results("logs/report.log"),
    benchmark:
        results("benchmarks/report.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: 1
    resources:
        mem_mb=8_000,
        runtime="1h",
    params:
        config=lambda wildcards: RUN.model_dump_json(),
    shell:
        "python -m kdseg report --config {params.config:q} --out {output.page} > {log} 2>&1"
