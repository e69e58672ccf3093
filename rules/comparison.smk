"""The same student, trained with each method and seed → a comparison of the methods."""


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
        **asks(4 * HOUR, 16_000, gpu=min(GPUS, 1)),
    params:
        task=lambda wildcards: as_json(
            tasks.TrialTask(
                **manifests(
                    wildcards,
                    model="{model}/model.json",
                    manifest="{model}/trial.json",
                ),
                name=wildcards.model,
                **trial_inputs(wildcards),
                options=RUN.trial,
                fragments=RUN.fragments,
                device=RUN.device,
            )
        ),
    shell:
        f"python -m kdseg trial --task {{params.task:q}}{OVERWRITE} > {{log:q}} 2>&1"


checkpoint choose:
    """The learning rate of one method: the one of least affinity loss on the tuning volume."""
    input:
        lambda wildcards: sum(rate_inputs(wildcards).values(), []),
    output:
        manifest=results("{method}.rate/chosen.json"),
    log:
        results("{method}.rate/logs/choose.log"),
    benchmark:
        results("{method}.rate/benchmarks/choose.tsv")
    localrule: True  # seconds, and a job of SLURM would wait longer than that
    conda:
        "../envs/kdseg.yaml"
    threads: 1
    resources:
        **asks(HOUR, 4_000),
    params:
        task=lambda wildcards: as_json(
            tasks.ChooseTask(
                **manifests(wildcards, manifest="{method}.rate/chosen.json"),
                trials=rate_inputs(wildcards),
            )
        ),
    shell:
        "python -m kdseg choose --task {params.task:q} > {log:q} 2>&1"


rule compare:
    """One page: each method against the student alone and the teacher; its table is also printed."""
    input:
        choices=choices,
        trials=compared,
    output:
        page=results("compare.html"),
    log:
        results("logs/compare.log"),
    benchmark:
        results("benchmarks/compare.tsv")
    localrule: True  # seconds, and a job of SLURM would wait longer than that
    conda:
        "../envs/kdseg.yaml"
    threads: 1
    resources:
        **asks(HOUR, 8_000),
    params:
        task=lambda wildcards: as_json(
            tasks.CompareTask(config=RUN, out=results("compare.html"))
        ),
        text=results("compare.txt"),
    shell:
        "python -m kdseg compare --task {params.task:q} > {log:q} 2>&1"
        " && cat -- {params.text:q}"
