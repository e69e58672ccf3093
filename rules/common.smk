"""The validated configuration and the small functions that the rules share."""

import json

from snakemake.exceptions import WorkflowError

from kdseg.config import validate
from kdseg.errors import ConfigError

try:
    RUN = validate(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None


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


# Switches that change how, but not what, is computed: no params, so that they trigger nothing.
FLAGS = "--overwrite" if RUN.overwrite else ""
GPUS = RUN.gpus if RUN.device.startswith("cuda") else 0
