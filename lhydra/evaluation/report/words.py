"""Names of stages and metrics as people write them."""

OURS = ("cascade", "retrieval", "head")
STAGE_NAMES = {
    "cascade": "Lhydra",
    "retrieval": "retrieval alone",
    "head": "head alone",
    "popular": "most popular",
    "itemknn": "ItemKNN",
    "rp3beta": "RP3beta",
    "ials": "iALS",
    "ease": "EASE",
    "dlae": "DLAE",
}
METRIC_NAMES = {
    "ndcg": "NDCG",
    "recall": "Recall",
    "map": "MAP",
    "hr": "Hit rate",
    "coverage": "Coverage",
    "mrr": "MRR",
}


def stage_name(stage: str) -> str:
    """Names a stage or baseline.

    Args:
        stage: its key in the document.

    Returns:
        What people call it; the key where it has no name.
    """
    return STAGE_NAMES.get(stage, stage)


def metric_name(key: str) -> str:
    """Names a metric.

    Args:
        key: as `ndcg@10`.

    Returns:
        As people write it: `NDCG@10`.
    """
    name, at, k = key.partition("@")
    return f"{METRIC_NAMES.get(name, name)}{at}{k}"
