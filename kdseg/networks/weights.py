"""The model file that a command or a stage names: by the manifest of a training, by its path, or by a shipped name."""

from __future__ import annotations

from pathlib import Path

from kdseg.config.shipped import model_file
from kdseg.errors import UnreadableError
from kdseg.results.files import again
from kdseg.results.manifests import file_fingerprint, read


def weights(model: Path) -> Path:
    """Return the path of a model file, which is the one that its training left.

    Args:
        model: manifest of a network, a model file, or the name of a shipped network.

    Raises:
        UnreadableError: if the file beside a manifest is another one than the training left.
    """
    if model.suffix != ".json":
        return model_file(model)
    manifest = read(model)
    path = manifest.result
    if manifest.stat("weights") != file_fingerprint(path):
        raise UnreadableError(
            f"{path} is not the file that `kdseg {manifest.stage}` left, whose SHA-256 is in {model}: it was changed "
            f"or damaged; {again(model)}"
        )
    return path
