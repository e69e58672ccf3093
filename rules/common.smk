"""The validated configuration and the small functions that the rules share."""

import json

from kdseg.config import validate

RUN = validate(config)


wildcard_constraints:
    model="|".join(RUN.models),
    volume="|".join(RUN.volumes),


def results(path):
    """Return a path below this configuration's folder of results."""
    return f"{RUN.results}/{path}"


def options(*sections):
    """Return a params function that gives a section as JSON; a bare string would be read as wildcards."""

    def section_json(wildcards):
        section = RUN
        for key in sections:
            key = key.format(**wildcards)
            section = (
                section[key] if isinstance(section, dict) else getattr(section, key)
            )
        return section.model_dump_json()

    return section_json


def flags(wildcards):
    """Return the switches that change how, but not what, is computed."""
    return "--overwrite" if RUN.overwrite else ""


GPUS = RUN.gpus if RUN.device.startswith("cuda") else 0
