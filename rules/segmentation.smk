"""Network and raw data → affinities → fragments → region graph → dendrogram → segmentation.

With `predict.fused` fragments come straight from the network, and affinities are stored only where a student learns
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
    threads: cores(PREDICT_CORES, PREDICT_GPUS)
    resources:
        **asks(DAY, PREDICT_MB, gpu=PREDICT_GPUS),
    params:
        task=lambda wildcards: as_json(
            tasks.PredictTask(
                **manifests(
                    wildcards,
                    raw="volumes/{volume}/raw.json",
                    model="{model}/model.json",
                    manifest="{model}/{volume}/affinities.json",
                ),
                **predicted_mask(wildcards),
                options=STORED,
                storage=RUN.storage,
                device=RUN.device,
                gpus=RUN.gpus,
            )
        ),
        reuse=earlier,
    shell:
        f"python -m kdseg predict --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CLUSTER}{REMOTE}{{params.reuse}} > {{log:q}} 2>&1"


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
        task=lambda wildcards: as_json(
            tasks.PredictTask(
                **manifests(
                    wildcards,
                    raw="volumes/{volume}/raw.json",
                    model="{model}/model.json",
                    manifest="{model}/{volume}/{product}.json",
                ),
                product=wildcards.product,
                options=STORED,
                storage=RUN.storage,
                device=RUN.device,
                gpus=RUN.gpus,
            )
        ),
        reuse=earlier,


rule fragments:
    """Supervoxels, block by block on a fixed grid."""
    input:
        unpack(tuned_options),
        unpack(mask_input),
        unpack(affinity_source),
    output:
        manifest=results("{model}/{volume}/fragments.json"),
    log:
        results("{model}/{volume}/logs/fragments.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/fragments.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: cores(FRAGMENTS_CORES, FRAGMENTS_GPUS)
    resources:
        **asks(DAY, FRAGMENTS_MB, gpu=FRAGMENTS_GPUS),
    params:
        task=lambda wildcards: as_json(
            tasks.FragmentsTask(
                **manifests(wildcards, manifest="{model}/{volume}/fragments.json"),
                **affinity_source(wildcards),
                **mask_input(wildcards),
                **COMPUTED,
                **tuned_options(wildcards),
                options=RUN.fragments,
                storage=RUN.storage,
            )
        ),
        reuse=earlier,
    shell:
        f"python -m kdseg fragments --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CLUSTER if RUN.predict.fused else CPU_CLUSTER}{REMOTE}{{params.reuse}} > {{log:q}} 2>&1"


rule edges:
    """The region graph: integer affinity sums between touching fragments."""
    input:
        unpack(tuned_options),
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
    threads: cores(CPU_CORES)
    resources:
        **asks(DAY, EDGES_MB, sharing=2),
    params:
        task=lambda wildcards: as_json(
            tasks.EdgesTask(
                **manifests(
                    wildcards,
                    fragments="{model}/{volume}/fragments.json",
                    manifest="{model}/{volume}/edges.json",
                ),
                **stored_affinities(wildcards),
                **tuned_options(wildcards),
                options=RUN.edges,
            )
        ),
    shell:
        f"python -m kdseg edges --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER} > {{log:q}} 2>&1"


rule agglomerate:
    """The dendrogram: merges of fragments up to the largest threshold."""
    input:
        unpack(tuned_options),
        unpack(stored_affinities),
        fragments=results("{model}/{volume}/fragments.json"),
        edges=results("{model}/{volume}/edges.json"),
        edits=named(edited_files),
    output:
        manifest=results("{model}/{volume}/agglomeration.json"),
    log:
        results("{model}/{volume}/logs/agglomerate.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/agglomerate.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: cores(CPU_CORES)
    resources:
        **asks(DAY, AGGLOMERATE_MB, sharing=2),
    params:
        task=lambda wildcards: as_json(
            tasks.AgglomerateTask(
                **manifests(
                    wildcards,
                    fragments="{model}/{volume}/fragments.json",
                    edges="{model}/{volume}/edges.json",
                    manifest="{model}/{volume}/agglomeration.json",
                ),
                **stored_affinities(wildcards),
                **tuned_options(wildcards),
                options=RUN.agglomerate,
            )
        ),
        sources=states(edited_files),
    shell:
        f"python -m kdseg agglomerate --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER} > {{log:q}} 2>&1"


rule relabel:
    """The segmentation at one threshold, with a pyramid."""
    input:
        unpack(tuned_options),
        unpack(threshold_inputs),
        fragments=results("{model}/{volume}/fragments.json"),
        edges=results("{model}/{volume}/edges.json"),
        agglomeration=results("{model}/{volume}/agglomeration.json"),
    output:
        manifest=results("{model}/{volume}/segmentation.json"),
    log:
        results("{model}/{volume}/logs/relabel.log"),
    benchmark:
        results("{model}/{volume}/benchmarks/relabel.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: cores(CPU_CORES)
    resources:
        **asks(DAY, RELABEL_MB, sharing=2),
    params:
        task=lambda wildcards: as_json(
            tasks.SegmentTask(
                **manifests(
                    wildcards,
                    fragments="{model}/{volume}/fragments.json",
                    edges="{model}/{volume}/edges.json",
                    agglomeration="{model}/{volume}/agglomeration.json",
                    manifest="{model}/{volume}/segmentation.json",
                ),
                **threshold_inputs(wildcards),
                **tuned_options(wildcards),
                options=RUN.segment,
                storage=RUN.storage,
            )
        ),
    shell:
        f"python -m kdseg relabel --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER}{REMOTE} > {{log:q}} 2>&1"
