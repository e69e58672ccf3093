"""Volumes → networks, teacher and students alike."""


rule train:
    """One network. Its weights, curve and resumable state lie beside the manifest and are no outputs."""
    input:
        unpack(training_inputs),
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
        options=options("models", "{model}"),
        offsets=json.dumps(RUN.offsets),
        fragments=options("fragments"),
        teacher=lambda wildcards, input: (
            f"--teacher {input.teacher}" if hasattr(input, "teacher") else ""
        ),
        volumes=lambda wildcards, input: " ".join(
            f"--volume {path}" for path in [*input.raw, *input.labels]
        ),
        launch=(
            f"-m torch.distributed.run --standalone --nproc-per-node {GPUS}"
            if GPUS > 1
            else ""
        ),
        device=RUN.device,
    shell:
        "python {params.launch} -m kdseg train --manifest {output.manifest} --options {params.options:q}"
        " --fragments {params.fragments:q} --offsets {params.offsets:q} {params.volumes} {params.teacher}"
        " --device {params.device} --workers {threads} > {log} 2>&1"
