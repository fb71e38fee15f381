"""What `lhydra evaluate` measures: a model or a store, refused before anything is embedded where it cannot be."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lhydra.bundle import catalog_writer
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.model import REFITTED, Model
from lhydra.data.dataset import Dataset
from lhydra.errors import ConfigError, DataError, complain
from lhydra.evaluation.document import Source
from lhydra.evaluation.run import Moment
from lhydra.json_text import parse_json


@contextmanager
def opened(
    model: Path | None, store: Path | None, dataset: Dataset, as_of: Moment
) -> Iterator[tuple[Bundle, Source, dict[str, Any]]]:
    """Opens what to evaluate; a model is searched exactly over the dataset's tracks.

    Args:
        model: folder of a model, or None.
        store: folder of a store, or None.
        dataset: whose tracks a model is searched over.
        as_of: the fold that is to be predicted.

    Yields:
        The bundle, its names for the protocol, and the split that its model was fitted under, {} where it is unknown.

    Raises:
        ConfigError: the model has learned from that fold.
    """
    if store is not None:
        bundle = Bundle.open(store)
        model_id = bundle.manifest.model_id if bundle.manifest else None
        parents: dict[str, Any] = {**bundle.manifest.parents} if bundle.manifest else {}
        _check_unlearned(parents.get("fitted_on"), as_of, store)
        named: Source = {"store": str(store), "bundle_id": bundle.bundle_id, "model_id": model_id}
        yield bundle, {**named, "fitted_on": parents.get("fitted_on")}, parents.get("split", {})
    elif model is not None:
        with tempfile.TemporaryDirectory(prefix="lhydra-") as folder:
            made = Model.open(model)
            _check_unlearned(made.info.fitted_on, as_of, model)
            bundle = catalog_writer.unpublished_bundle(made, dataset, Path(folder))
            named = {"model": str(model), "bundle_id": None, "model_id": bundle.bundle_id}
            split = made.info.parents["split"] if made.info.parents else {}
            yield bundle, {**named, "fitted_on": made.info.fitted_on}, split


def _check_unlearned(fitted_on: str | None, as_of: Moment, what: Path) -> None:
    """Refuses to measure a refitted model on the fold that it was refitted on."""
    if fitted_on == REFITTED and as_of == "valid":
        raise ConfigError(complain("--as-of", f"valid, from which {what} has learned (--refit)", "test"))


def training_log(model: Path | None) -> list[dict[str, Any]]:
    """Reads what training measured by epoch.

    Args:
        model: folder of a model, or None.

    Returns:
        The lines of its metrics.jsonl; [] where nothing was kept.

    Raises:
        DataError: a line is no JSON.
    """
    path = model / "metrics.jsonl" if model is not None else None
    if path is None or not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [parse_json(line, lambda _: None) for line in lines if line.strip()]  # NaN: undefined
    except ValueError as error:
        raise DataError(complain(path, str(error), "a JSON object per line")) from None
