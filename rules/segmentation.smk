"""Network and raw data → affinities → fragments → region graph → look-up tables → segmentation.

With `predict.fused` the network makes fragments at once, and affinities are there only where a student learns
from them.
"""


rule predict:
    """Affinities of one volume, predicted by one network, block by block."""
    input:
        unpack(predicted_mask),
        raw=results("volumes/{volume}/raw.json"),
        model=results("{model}/model.json"),
    output:
        manifest=results("{model}/{volume}/affinities.json"),
    log:
        results("{model}/{volume}/logs/predict.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/predict.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: PREDICT_CORES
    resources:
        gpu=PREDICT_GPUS,
        mem_mb=32_000,
        runtime="1d",
    params:
        options=options("predict"),
        storage=options("storage"),
        device=RUN.device,
        gpus=RUN.gpus,
        product="--product affinities",
        mask=optional("mask"),
    shell:
        "python -m kdseg predict --raw {input.raw} --model {input.model} {params.mask} --manifest {output.manifest} {params.product}"
        " --options {params.options:q} --storage {params.storage:q} --device {params.device}"
        " --gpus {params.gpus} --workers {threads} > {log} 2>&1"


use rule predict as teach with:
    input:
        raw=results("volumes/{volume}/raw.json"),
        model=results("{model}/model.json"),
    output:
        manifest=results("{model}/{volume}/{product}.json"),
    log:
        results("{model}/{volume}/logs/{product}.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/{product}.tsv")
    wildcard_constraints:
        product="affinities_flips|affinities_all|embedding",
    params:
        options=options("predict"),
        storage=options("storage"),
        device=RUN.device,
        gpus=RUN.gpus,
        product=lambda wildcards: f"--product {wildcards.product}",
        mask="",


if RUN.predict.fused:

    rule fuse:
        """Supervoxels straight from the network: affinities of one block at a time, never of the volume."""
        input:
            unpack(mask_input),
            raw=results("volumes/{volume}/raw.json"),
            model=results("{model}/model.json"),
        output:
            manifest=results("{model}/{volume}/fragments.json"),
        log:
            results("{model}/{volume}/logs/fragments.log"),
        benchmark:
            results("{model}/{volume}/benchmarks/fragments.tsv")
        conda:
            "../envs/kdseg.yaml"
        threads: PREDICT_CORES
        resources:
            gpu=PREDICT_GPUS,
            mem_mb=32_000,
            runtime="1d",
        params:
            options=options("predict"),
            fragments=options("fragments"),
            storage=options("storage"),
            device=RUN.device,
            gpus=RUN.gpus,
            mask=optional("mask"),
        shell:
            "python -m kdseg fuse --raw {input.raw} --model {input.model} {params.mask} --manifest {output.manifest}"
            " --options {params.options:q} --fragments {params.fragments:q} --storage {params.storage:q}"
            " --device {params.device} --gpus {params.gpus} --workers {threads} > {log} 2>&1"

else:

    rule fragments:
        """Supervoxels, per block of a canonical grid."""
        input:
            unpack(mask_input),
            affinities=results("{model}/{volume}/affinities.json"),
        output:
            manifest=results("{model}/{volume}/fragments.json"),
        log:
            results("{model}/{volume}/logs/fragments.log"),
        benchmark:
            results("{model}/{volume}/benchmarks/fragments.tsv")
        conda:
            "../envs/kdseg.yaml"
        threads: RUN.workers
        resources:
            mem_mb=32_000,
            runtime="1d",
        params:
            options=options("fragments"),
            storage=options("storage"),
            mask=optional("mask"),
        shell:
            "python -m kdseg fragments --affinities {input.affinities} {params.mask} --manifest {output.manifest}"
            " --options {params.options:q} --storage {params.storage:q}"
            " --workers {threads} > {log} 2>&1"


rule edges:
    """The region graph: integer affinity sums between touching fragments."""
    input:
        unpack(stored_affinities),
        fragments=results("{model}/{volume}/fragments.json"),
    output:
        manifest=results("{model}/{volume}/edges.json"),
    log:
        results("{model}/{volume}/logs/edges.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/edges.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: RUN.workers
    resources:
        mem_mb=32_000,
        runtime="1d",
    params:
        options=options("edges"),
        affinities=optional("affinities"),
    shell:
        "python -m kdseg edges {params.affinities} --fragments {input.fragments}"
        " --manifest {output.manifest} --options {params.options:q}"
        " --workers {threads} > {log} 2>&1"


rule agglomerate:
    """The dendrogram: merges of fragments up to the largest threshold."""
    input:
        unpack(stored_affinities),
        fragments=results("{model}/{volume}/fragments.json"),
        edges=results("{model}/{volume}/edges.json"),
        edits=[RUN.agglomerate.edits] if RUN.agglomerate.edits else [],
    output:
        manifest=results("{model}/{volume}/agglomeration.json"),
    log:
        results("{model}/{volume}/logs/agglomerate.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/agglomerate.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: RUN.workers
    resources:
        mem_mb=32_000,
        runtime="1d",
    params:
        options=options("agglomerate"),
        affinities=optional("affinities"),
    shell:
        "python -m kdseg agglomerate {params.affinities} --fragments {input.fragments}"
        " --edges {input.edges} --manifest {output.manifest} --options {params.options:q}"
        " --workers {threads} > {log} 2>&1"


rule segment:
    """The segmentation at one threshold, with a pyramid."""
    input:
        unpack(threshold_inputs),
        fragments=results("{model}/{volume}/fragments.json"),
        edges=results("{model}/{volume}/edges.json"),
        agglomeration=results("{model}/{volume}/agglomeration.json"),
    output:
        manifest=results("{model}/{volume}/segmentation.json"),
    log:
        results("{model}/{volume}/logs/segment.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/segment.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: RUN.workers
    resources:
        mem_mb=32_000,
        runtime="1d",
    params:
        options=options("segment"),
        storage=options("storage"),
        sweep=optional("sweep"),
    shell:
        "python -m kdseg segment --fragments {input.fragments} --edges {input.edges} --agglomeration {input.agglomeration}"
        " {params.sweep} --manifest {output.manifest} --options {params.options:q}"
        " --storage {params.storage:q} --workers {threads} > {log} 2>&1"
