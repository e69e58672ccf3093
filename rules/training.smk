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
        options=options("all_models", "{model}"),
        offsets=json.dumps(RUN.offsets),
        fragments=options("fragments"),
        volumes=lambda wildcards, input: repeated(
            "--volume", [*input.raw, *input.labels]
        ),
        teaching=lambda wildcards, input: " ".join(
            [
                repeated("--teacher", input.get("teachers", [])),
                repeated("--stored", input.get("stored", [])),
                repeated("--instances", input.get("instances", [])),
            ]
        ),
        launch=(
            f"-m torch.distributed.run --standalone --nproc-per-node {GPUS}"
            if GPUS > 1
            else ""
        ),
        device=RUN.device,
    shell:
        "python {params.launch} -m kdseg train --manifest {output.manifest} --options {params.options:q}"
        " --fragments {params.fragments:q} --offsets {params.offsets:q} {params.volumes} {params.teaching}"
        " --device {params.device} --workers {threads} > {log} 2>&1"
