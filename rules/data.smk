"""Any source → OME-Zarr."""


rule convert:
    """Raw data, labels, baseline or mask of one volume as sharded OME-Zarr 0.5, cropped to its region."""
    input:
        named(converted_files),
    output:
        manifest=results("volumes/{volume}/{kind}.json"),
    log:
        results("volumes/{volume}/logs/{kind}.log"),
    benchmark:
        results("volumes/{volume}/benchmarks/{kind}.tsv")
    wildcard_constraints:
        kind="raw|labels|baseline|mask",
    conda:
        "../envs/kdseg.yaml"
    threads: cores(CPU_CORES)
    resources:
        **asks(DAY, 8_000),
    params:
        task=lambda wildcards: as_json(
            tasks.ConvertTask(
                **manifests(wildcards, manifest="volumes/{volume}/{kind}.json"),
                kind=wildcards.kind,
                options=RUN.volumes[wildcards.volume],
                storage=RUN.storage,
            )
        ),
        sources=states(converted_files),
    shell:
        f"python -m kdseg convert --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER}{REMOTE} > {{log:q}} 2>&1"


rule adopt:
    """Affinities that another program stored, on the voxels of a volume and with our offsets, to learn from."""
    input:
        named(adopted_files),
        raw=results("volumes/{volume}/raw.json"),
    output:
        manifest=results("{teacher}/{volume}/affinities.json"),
    log:
        results("{teacher}/{volume}/logs/adopt.log"),
    benchmark:
        results("{teacher}/{volume}/benchmarks/adopt.tsv")
    conda:
        "../envs/kdseg.yaml"
    threads: cores(CPU_CORES)
    resources:
        **asks(DAY, 8_000),
    params:
        task=lambda wildcards: as_json(
            questions.AdoptTask(
                **manifests(
                    wildcards,
                    raw="volumes/{volume}/raw.json",
                    manifest="{teacher}/{volume}/affinities.json",
                ),
                address=RUN.teachers[wildcards.teacher].affinities[wildcards.volume],
                offsets=RUN.teachers[wildcards.teacher].offsets,
                invert=RUN.teachers[wildcards.teacher].invert,
                keep=RUN.offsets,
                storage=RUN.storage,
            )
        ),
        sources=states(adopted_files),
    shell:
        f"python -m kdseg adopt --task {{params.task:q}} --workers {{threads}}{OVERWRITE}{CPU_CLUSTER}{REMOTE} > {{log:q}} 2>&1"


use rule convert as convert_segmentation with:
    input:
        named(taught_files),
    output:
        manifest=results("{teacher}/{volume}/segmentation.json"),
    log:
        results("{teacher}/{volume}/logs/segmentation.log"),
    benchmark:
        results("{teacher}/{volume}/benchmarks/segmentation.tsv")
    params:
        task=lambda wildcards: as_json(
            tasks.ConvertTask(
                **manifests(
                    wildcards, manifest="{teacher}/{volume}/segmentation.json"
                ),
                kind="labels",
                options=taught_segmentation(wildcards),
                storage=RUN.storage,
            )
        ),
        sources=states(taught_files),
