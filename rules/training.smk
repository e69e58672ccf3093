"""Volumes → networks, teacher and students alike."""


def training_inputs(wildcards):
    """Return the manifests that one model is trained on."""
    train = RUN.models[wildcards.model].train
    labelled = dict.fromkeys((*train.volumes, train.validate_on))
    names = dict.fromkeys((*labelled, *train.unlabelled))
    inputs = {
        "raw": [results(f"volumes/{name}/raw.json") for name in names],
        "labels": [results(f"volumes/{name}/labels.json") for name in labelled],
    }
    if train.teacher:
        inputs["teacher"] = results(f"{train.teacher}/model.json")
    return inputs


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
        " --device {params.device} --workers {threads} {FLAGS} > {log} 2>&1"
