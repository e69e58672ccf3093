"""Volumes → networks, teacher and students alike."""


rule train:
    """One network; its weights, curve and resumable state lie beside the manifest and are not outputs."""
    input:
        lambda wildcards: leaves(training_inputs(wildcards)),
        start=lambda wildcards: RUN.all_models[wildcards.model].train.start_from or [],
        foreign=lambda wildcards: [
            path
            for one in foreign_teachers(wildcards).values()
            for path in one.needed_files
        ],
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
