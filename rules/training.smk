"""Volumes → networks, teacher and students alike."""


rule rate:
    """The learning rate at which the loss of one network falls the fastest; its last words are printed."""
    input:
        lambda wildcards: leaves(training_inputs(wildcards)),
        files=named(training_files),
    output:
        manifest=results("{model}/rate.json"),
    log:
        results("{model}/logs/rate.log"),
    benchmark:
        results("{model}/benchmarks/rate.tsv")
    wildcard_constraints:
        model="|".join(map(re.escape, RUN.all_models)) or "(?!)",
    conda:
        "../envs/kdseg.yaml"
    threads: cores(estimates.TRAIN_CORES, GPUS)
    resources:
        **asks(4 * HOUR, train_mb, gpu=min(GPUS, 1)),
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
        sources=states(training_files),
    shell:
        f"python -m kdseg rate --task {{params.task:q}} --workers {{threads}}{OVERWRITE} > {{log:q}} 2>&1"
        " && tail -n 1 -- {log:q}"


rule pretrained:
    """A network that is trained already: its weights lie beside the manifest and are no output."""
    input:
        file=named(pretrained_files),
    output:
        manifest=results("{model}/model.json"),
    log:
        results("{model}/logs/pretrained.log"),
    benchmark:
        results("{model}/benchmarks/pretrained.tsv")
    wildcard_constraints:
        model="|".join(map(re.escape, RUN.pretrained)) or "(?!)",
    conda:
        "../envs/kdseg.yaml"
    params:
        task=lambda wildcards: as_json(
            tasks.PretrainedTask(
                **manifests(wildcards, manifest="{model}/model.json"),
                file=RUN.pretrained[wildcards.model],
                offsets=RUN.offsets,
            )
        ),
        sources=states(pretrained_files),
    shell:
        f"python -m kdseg pretrained --task {{params.task:q}}{OVERWRITE} > {{log:q}} 2>&1"


rule train:
    """One network; its weights, curve and resumable state lie beside the manifest and are not outputs."""
    input:
        lambda wildcards: leaves(training_inputs(wildcards)),
        files=named(training_files),
    output:
        manifest=results("{model}/model.json"),
    log:
        results("{model}/logs/train.log"),
    benchmark:
        results("{model}/benchmarks/train.tsv")
    wildcard_constraints:
        model="|".join(map(re.escape, RUN.all_models)) or "(?!)",
    conda:
        "../envs/kdseg.yaml"
    threads: cores(estimates.TRAIN_CORES, GPUS)
    resources:
        **asks(train_minutes, train_mb, gpu=GPUS),
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
        sources=states(training_files),
        launch=(
            f"-m torch.distributed.run --standalone --nproc-per-node {GPUS}"
            if GPUS > 1
            else ""
        ),
    shell:
        f"python {{params.launch}} -m kdseg train --task {{params.task:q}} --workers {{threads}}{OVERWRITE}"
        " > {log:q} 2>&1"


rule models:
    """All networks of a configuration, trained."""
    input:
        [results(f"{model}/model.json") for model in RUN.models],
