"""The same student, trained with each method and seed → which method is worth it."""


rule trial:
    """VOI and ARAND of one network on crops, in memory, and what its training cost."""
    input:
        model=results("{model}/model.json"),
        volumes=lambda wildcards: leaves(trial_inputs(wildcards)),
    output:
        manifest=results("{model}/trial.json"),
    log:
        results("{model}/logs/trial.log"),
    benchmark:
        results("{model}/benchmarks/trial.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: 1
    resources:
        gpu=min(GPUS, 1),
        mem_mb=16_000,
        runtime="4h",
    params:
        options=options("trial"),
        fragments=options("fragments"),
        inputs=lambda wildcards: json.dumps(trial_inputs(wildcards)),
        device=RUN.device,
    shell:
        "python -m kdseg trial --model {input.model} --inputs {params.inputs:q} --manifest {output.manifest}"
        " --name {wildcards.model}"
        " --options {params.options:q} --fragments {params.fragments:q} --device {params.device} > {log} 2>&1"


rule compare:
    """One page: each method against the student alone and the teacher. Its table is printed too."""
    input:
        trials=compared,
    output:
        page=results("compare.html"),
    log:
        results("logs/compare.log"),
    benchmark:
        results("benchmarks/compare.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: 1
    resources:
        mem_mb=8_000,
        runtime="1h",
    params:
        config=lambda wildcards: RUN.model_dump_json(),
        text=results("compare.txt"),
    shell:
        "python -m kdseg compare --config {params.config:q} --out {output.page} > {log} 2>&1"
        " && cat {params.text}"
