"""Volumes → networks, teacher and students alike."""


rule rate:
    """The learning rate at which the loss of one network falls the fastest; its last words are printed."""
    input:
        lambda wildcards: leaves(training_inputs(wildcards)),
        start=lambda wildcards: RUN.all_models[wildcards.model].train.start_from or [],
        foreign=foreign_files,
    output:
        manifest=results("{model}/rate.json"),
    log:
        results("{model}/logs/rate.log"),
    benchmark:
        results("{model}/benchmarks/rate.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: 8
    resources:
        gpu=min(GPUS, 1),
        mem_mb=32_000,
        runtime="4h",
    params:
        task=lambda wildcards: as_json(
            tasks.RateTask(
                **manifests(wildcards, manifest="{model}/rate.json"),
                **training_inputs(wildcards),
                foreign=foreign_teachers(wildcards),
                name=wildcards.model,
                options=RUN.all_models[wildcards.model],
                offsets=RUN.offsets,
                device=RUN.device,
            )
        ),
    shell:
        f"python -m kdseg rate --task {{params.task:q}} --workers {{threads}}{OVERWRITE} > {{log}} 2>&1"
        " && tail -n 1 {log}"


rule train:
    """One network; its weights, curve and resumable state lie beside the manifest and are not outputs."""
    input:
        lambda wildcards: leaves(training_inputs(wildcards)),
        start=lambda wildcards: RUN.all_models[wildcards.model].train.start_from or [],
        foreign=foreign_files,
    output:
        manifest=results("{model}/model.json"),
    log:
        results("{model}/logs/train.log"),
    benchmark:
        results("{model}/benchmarks/train.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: 8
    resources:
        gpu=GPUS,
        mem_mb=32_000,
        runtime="2d",
    params:
        task=lambda wildcards: as_json(
            tasks.TrainTask(
                **manifests(wildcards, manifest="{model}/model.json"),
                **training_inputs(wildcards),
                foreign=foreign_teachers(wildcards),
                name=wildcards.model,
                options=RUN.all_models[wildcards.model],
                offsets=RUN.offsets,
                fragments=RUN.fragments,
                device=RUN.device,
            )
        ),
        launch=(
            f"-m torch.distributed.run --standalone --nproc-per-node {GPUS}"
            if GPUS > 1
            else ""
        ),
    shell:
        f"python {{params.launch}} -m kdseg train --task {{params.task:q}} --workers {{threads}}{OVERWRITE}"
        " > {log} 2>&1"
