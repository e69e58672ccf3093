"""Volumes → networks, teacher and students alike."""


rule train:
    """One network. Its weights, curve and resumable state lie beside the manifest and are no outputs."""
    input:
        lambda wildcards: leaves(training_inputs(wildcards)),
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
        options=options("all_models", "{model}"),
        offsets=json.dumps(RUN.offsets),
        fragments=options("fragments"),
        inputs=lambda wildcards: json.dumps(training_inputs(wildcards)),
        launch=(
            f"-m torch.distributed.run --standalone --nproc-per-node {GPUS}"
            if GPUS > 1
            else ""
        ),
        device=RUN.device,
    shell:
        "python {params.launch} -m kdseg train --manifest {output.manifest} --options {params.options:q}"
        " --fragments {params.fragments:q} --offsets {params.offsets:q} --inputs {params.inputs:q}"
        " --name {wildcards.model} --device {params.device} --workers {threads} > {log} 2>&1"
