"""The evaluation as one HTML page for people: self-contained, no network, every text escaped.

`report.css` and `report.js` beside this file are its looks; plotly.js draws. A part that the document lacks is
left out of the page.
"""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lhydra.errors import MissingExtra

Part = Mapping[str, Any]
OURS = ("cascade", "retrieval", "head")
NAMES = {
    "cascade": "Lhydra",
    "retrieval": "retrieval alone",
    "head": "head alone",
    "popular": "most popular",
    "itemknn": "ItemKNN",
    "ials": "iALS",
    "ease": "EASE",
}
METRICS = {"ndcg": "NDCG", "recall": "Recall", "map": "MAP", "hr": "Hit rate", "coverage": "Coverage", "mrr": "MRR"}
DASH = "–"
SHOWN_USERS = 4  # worst users before the fold of the page
SLICES = {
    "few_play_tracks": ("Rarely played tracks", "targets with at most {at_most} listeners in train"),
    "new_tracks": ("New tracks", "targets nobody played in train"),
    "new_users": ("New users", "users without a play in train"),
    "cold_users": ("Light listeners", "the fifth of the users with the fewest plays in train"),
}
BEYOND = {
    "coverage": ("Coverage", "of the catalogue is recommended to somebody", "share"),
    "popularity_lift": ("Popularity lift", "above 1: lists are more mainstream than what people hear", "number"),
    "inter_user_overlap": ("Overlap between users", "of two random users' lists is the same", "share"),
    "intra_list_diversity": ("Diversity within a list", "0: all tracks alike; 1: unrelated", "number"),
    "novelty": ("Novelty", "bits; each bit halves the listeners of a recommended track", "number"),
    "genre_calibration": ("Genre calibration", "0: lists mix genres as their listener does", "number"),
}
CLASSIFICATION = ("accuracy", "precision", "recall", "f1", "auc", "pr_auc", "log_loss", "ece")
CLASSIFICATION_NAMES = {"f1": "F1", "auc": "ROC AUC", "pr_auc": "PR AUC", "log_loss": "log loss", "ece": "ECE"}


def render(document: Part) -> str:
    """Returns the page of an evaluation document. Raises MissingExtra without plotly."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtra("eval", "plotly") from None

    document = _defined(document)
    folder = Path(__file__).parent
    style = (folder / "report.css").read_text(encoding="utf-8")
    scripts = str(get_plotlyjs()), (folder / "report.js").read_text(encoding="utf-8")
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    # only these two scripts run, and nothing is fetched, whatever a title says
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}"
    sections = [(name, title, build(document)) for name, title, build in _SECTIONS]
    sections = [section for section in sections if section[2]]
    links = " ".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}"{" class=secondary" if name == "classification" else ""}><h2>{title}</h2>{text}</section>'
        for name, title, text in sections
    )
    protocol = _part(document, "protocol")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(_subject(protocol))} · Lhydra evaluation</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{_header(document)}\n<main>\n<nav>{links}</nav>\n{body}\n"
        f"<footer>Made by Lhydra {_text(protocol.get('lhydra_version', ''))}. Intervals are 95 % bootstrap intervals "
        "over users. Everything on this page is also in the JSON document.</footer>\n</main>\n"
        f"<script>{scripts[0]}</script>\n<script>{scripts[1]}</script>\n</body>\n</html>\n"
    )


# -- the top of the page ----------------------------------------------------------------------------------


def _header(document: Part) -> str:
    protocol = _part(document, "protocol")
    told = {f"{leak.get('verdict')}: {leak.get('check')}: {leak.get('found')}" for leak in document.get("leaks") or ()}
    told |= set(_part(document, "beyond_accuracy").get("alarms") or ())  # both have a notice of their own
    lines = [line[:1].upper() + line[1:] for line in map(str, document.get("summary") or ()) if line not in told]
    verdict = lines[0] if lines else "How good are the recommendations?"
    more = "".join(f"<p>{_text(line)}</p>" for line in lines[1:])
    return (
        f'<header><p class="kicker">{_text(_subject(protocol))}</p><h1>{_text(verdict)}</h1>'
        f'<div class="summary">{more}</div>{_key_figures(document)}{_notices(document)}</header>'
    )


def _subject(protocol: Part) -> str:
    """What was evaluated on what, in a line."""
    what = protocol.get("bundle_id") or protocol.get("model_id") or protocol.get("store") or protocol.get("model")
    where = Path(str(protocol["dataset"])).name if protocol.get("dataset") else None
    fold = f"{protocol['as_of']} fold" if protocol.get("as_of") else None
    return " · ".join(str(part) for part in ("Lhydra evaluation", what, where, fold) if part)


def _key_figures(document: Part) -> str:
    ranking = _part(document, "ranking")
    tiles = []
    for name in OURS:
        metric, value = _first(_part(ranking, name), "ndcg")
        if value:
            tiles.append(_ranked(_name(name), metric, value, main=name == "cascade"))
    rivals = [(*_first(part, "ndcg"), name) for name, part in ranking.items() if name not in OURS]
    if measured := [rival for rival in rivals if _part(ranking[rival[2]], rival[0]).get("mean") is not None]:
        metric, value, name = max(measured, key=lambda rival: (rival[1]["mean"], rival[2]))
        tiles.insert(1, _ranked(f"{_name(name)}, best baseline", metric, value))
    metric, value = _first(_part(ranking, "cascade"), "coverage")
    if value:
        tiles.append(_tile(_metric(metric), _share(value.get("mean")), "of the catalogue is recommended"))
    counts = _part(document, "counts")
    if counts.get("users") is not None:
        note = f"{_count(counts.get('targets'))} targets among {_count(counts.get('catalogue'))} tracks"
        tiles.append(_tile("Users", _count(counts["users"]), note))
    return _tiles(tiles, len(tiles))


def _notices(document: Part) -> str:
    """What must not be missed: leaks, then warnings and alarms; a quiet line when there is nothing."""
    leaks = [leak for leak in document.get("leaks") or () if isinstance(leak, Mapping)]
    alarms = [str(alarm) for alarm in _part(document, "beyond_accuracy").get("alarms") or ()]
    out = []
    for verdict, title in (("leak", "Leaks: these numbers flatter"), ("warning", "Worth a look in the data")):
        items = [f"{leak.get('check')}: {leak.get('found')}" for leak in leaks if leak.get("verdict") == verdict]
        out += [_notice(verdict, title, items)] if items else []
    out += [_notice("warning", "Alarms", alarms)] if alarms else []
    if leaks and not out:
        checks = f"{len(leaks)} check{'s' * (len(leaks) > 1)}"
        alarmed = ", no alarm in the lists" if "beyond_accuracy" in document else ""
        out.append(f'<div class="notice ok"><p>No leak in {checks} of the data{alarmed}.</p></div>')
    return "".join(out)


# -- sections: each returns HTML, "" when the document has nothing for it ---------------------------------------


def _ranking(document: Part) -> str:
    ranking = {name: part for name, part in _part(document, "ranking").items() if part}
    if not ranking:
        return ""
    names = list(ranking)
    panels = []
    for kind in ("ndcg", "recall"):
        metrics = _of_kind(ranking, kind)
        series = [
            _series(f"k = {metric.partition('@')[2]}", [ranking[name].get(metric) for name in names], n > 0)
            for n, metric in enumerate(metrics)
        ]
        if series:
            tones = ["accent" if name == "cascade" else "quiet" for name in names]
            panels.append(_panel(METRICS[kind], _dots([_name(name) for name in names], tones, series, METRICS[kind])))
    metrics = list(dict.fromkeys(metric for part in ranking.values() for metric in part))
    rows = [
        [_metric(metric), *(_with_interval(ranking[name].get(metric), metric) for name in names)] for metric in metrics
    ]
    table = _table(["", *map(_name, names)], rows, wide=True)
    return (
        _read("Each dot is a mean over users, the line through it its 95 % interval; further right is better.")
        + _grid(panels)
        + _folded("All metrics as numbers", table)
    )


def _paired(document: Part) -> str:
    paired = _part(document, "paired")
    panels = []
    for kind in ("ndcg", "recall"):
        for metric in _of_kind(paired, kind):
            shown = [name for name in paired if paired[name].get(metric)]
            points = [dict(paired[name][metric], mean=paired[name][metric].get("difference")) for name in shown]
            tones = ["accent" if (point.get("low") or 0) > 0 else "quiet" for point in points]
            tones = ["bad" if _below(point) else tone for tone, point in zip(tones, points, strict=True)]
            labels = [f"over {_name(name)}" for name in shown]
            chart = _dots(labels, tones, [_series("", points, signed=True)], "difference", reference=0.0)
            panels.append(_panel(f"{_metric(metric)}, Lhydra minus baseline", chart))
    if not panels:
        return ""
    how = "User by user on the same targets. Right of the dotted line Lhydra is better; an interval that crosses it "
    return _read(f"{how}is a tie.") + _grid(panels) + _baselines(document)


def _baselines(document: Part) -> str:
    rows = []
    for name, part in _part(document, "baselines").items():
        chosen = ", ".join(f"{key} {value}" for key, value in _part(part, "chosen").items()) or DASH
        skipped = f"skipped: {part['skipped']}" if part.get("skipped") else chosen
        _, valid = _first(part, "valid_ndcg")
        took = DASH if part.get("took_s") is None else f"{part['took_s']:.1f} s" + " (kept)" * bool(part.get("cached"))
        rows.append([_name(name), skipped, _count(part.get("tried")), _number(valid), took])
    if not rows:
        return ""
    head = ["", "settings chosen on the validation fold", "settings tried", "NDCG on validation", "took"]
    return _folded("How the baselines were tuned", _table(head, rows, numbers=2))


def _cascade(document: Part) -> str:
    loss = _part(document, "cascade_loss")
    curve = [point for point in loss.get("curve") or () if point.get("depth")]
    if not curve:
        return ""
    depths = [point["depth"] for point in curve]
    k = loss.get("k", 10)
    overlap = _lines("shortlist length", "share", [_line("", depths, [p.get("overlap") for p in curve])], depths, ".0%")
    series = [_line("cascade", depths, [point.get("ndcg") for point in curve])]
    _, full = _first(_part(loss, "full"), "ndcg")
    if full is not None:
        series.append(_line("head over the whole catalogue", depths[:1] + depths[-1:], [full, full], "dashed"))
    ndcg = _lines("shortlist length", f"NDCG@{k}", series, depths, ".3~f")
    users = f" Measured on {_count(loss['users'])} users." if loss.get("users") else ""
    how = (
        "Only a shortlist reaches the head. Where quality is flat, a longer one buys nothing; where it falls, it harms."
    )
    panels = [_panel(f"The head's own top {k} that survives", overlap), _panel("Ranking quality", ndcg)]
    return _read(how + users) + _grid(panels)


def _cohorts(document: Part) -> str:
    groups: dict[str, list[Part]] = {}
    for cohort in document.get("cohorts") or ():
        if _first(cohort, "ndcg")[1]:
            groups.setdefault(str(cohort.get("by")), []).append(cohort)
    if not groups:
        return ""
    every = [cohort for cohorts in groups.values() for cohort in cohorts]
    metric, overall = _first(_part(_part(document, "ranking"), "cascade"), "ndcg")
    metric = metric or _first(every[0], "ndcg")[0]
    ends = [_first(cohort, "ndcg")[1].get(end) for cohort in every for end in ("low", "mean", "high")]
    known = [end for end in ends if end is not None]
    span = [max(0.0, min(known) * 0.9), max(known) * 1.06] if known else None
    panels = []
    for by, cohorts in groups.items():
        largest = sorted(cohorts, key=lambda cohort: -(cohort.get("users") or 0))[:14]
        shown = [cohort for cohort in cohorts if cohort in largest]
        labels = [f"{_cut(cohort.get('name'), 22)} · {_count(cohort.get('users'))}" for cohort in shown]
        points = [_first(cohort, "ndcg")[1] for cohort in shown]
        left = f" ({len(cohorts) - len(shown)} smaller ones left out)" if len(cohorts) > len(shown) else ""
        reference = overall.get("mean") if overall else None
        chart = _dots(labels, ["accent"] * len(shown), [_series("", points)], _metric(metric), reference, span)
        panels.append(_panel(f"By {by}{left}", chart))
    how = "One dot per group of users with its 95 % interval and the number of users; the dotted line is everybody. "
    return _read(f"{how}Wide intervals are small groups, not bad service.") + _grid(panels, "flow")


def _beyond(document: Part) -> str:
    part = _part(document, "beyond_accuracy")
    tiles = []
    for key, value in part.items():
        name, _, k = key.partition("@")
        if name in BEYOND and value is not None:
            title, note, kind = BEYOND[name]
            shown = _share(value) if kind == "share" else _number(value, 2)
            tiles.append(_tile(f"{title}@{k}" if k else title, shown, note))
    if not tiles:
        return ""
    how = "Accurate lists can still be dull: the same hits for everybody, or nothing that is new to anybody."
    return _read(how) + _tiles(tiles, 3, "small")


def _slices(document: Part) -> str:
    rows = []
    for name, part in _part(document, "slices").items():
        if isinstance(part, Mapping):
            title, meaning = SLICES.get(name, (name.replace("_", " "), ""))
            numbers = [_first(part, kind)[1] for kind in ("ndcg", "recall")]
            means = [value.get("mean") if isinstance(value, Mapping) else value for value in numbers]
            note = meaning.format(at_most=part.get("at_most", "few"))
            rows.append([(title, note), _count(part.get("users")), _count(part.get("targets")), *map(_number, means)])
    if not rows:
        return ""
    metric, everybody = _first(_part(_part(document, "ranking"), "cascade"), "ndcg")
    compare = f" Everybody together: {_metric(metric)} {_number(everybody.get('mean'))}." if everybody else ""
    some = next(part for part in _part(document, "slices").values() if isinstance(part, Mapping))
    head = ["", "users", "targets", *(_metric(_first(some, kind)[0] or kind) for kind in ("ndcg", "recall"))]
    how = f"Where there is little to learn from, a good recommender degrades slowly.{compare}"
    return _read(how) + _panel("", _table(head, rows))


def _classification(document: Part) -> str:
    part = _part(document, "classification")
    if not part:
        return ""
    tiles = [
        _tile(CLASSIFICATION_NAMES.get(name, name), _number(part[name]))
        for name in CLASSIFICATION
        if part.get(name) is not None
    ]
    panels = []
    if roc := part.get("roc"):
        x, y = zip(*roc, strict=True)
        series = [_line("head", x, y), _line("chance", [0, 1], [0, 1], "dashed")]
        chart = _lines("false positive rate", "true positive rate", series, span=[0, 1])
        panels.append(_panel("ROC", chart, "Towards the upper left is better; the diagonal is guessing."))
    if pr := part.get("pr"):
        x, y = zip(*pr, strict=True)
        base = (part.get("positives") or 0) / max(1, part.get("pairs") or 0)
        series = [_line("head", x, y), _line("chance", [0, 1], [base, base], "dashed")]
        chart = _lines("recall", "precision", series, span=[0, 1])
        panels.append(_panel("Precision and recall", chart, "Towards the upper right is better."))
    if calibration := [row for row in part.get("calibration") or () if row.get("n")]:
        predicted, observed = ([row.get(key) for row in calibration] for key in ("predicted", "observed"))
        perfect = _line("perfect", [0, 1], [0, 1], "dashed")
        series = [_line("head", predicted, observed, marked=True), perfect]
        chart = _lines("predicted probability", "share that was played", series, span=[0, 1])
        panels.append(_panel("Calibration", chart, "On the diagonal, a score of 0.7 is right 7 times in 10."))
    if confusion := part.get("confusion"):
        panels.append(_panel("Confusion at 0.5", _confusion(confusion), "Tinted cells are right answers."))
    pairs = f"{_count(part.get('pairs'))} pairs, {_count(part.get('positives'))} of them played. "
    how = f"The head as a classifier of single pairs; lists are what users see, so read this last. {pairs}"
    negatives = f"Negatives: {part['negatives']}." if part.get("negatives") else ""
    return _read(how + negatives) + _tiles(tiles, 4, "small") + _grid(panels)


def _confusion(cells: Sequence[Sequence[int]]) -> str:
    total = max(1, sum(map(sum, cells)))

    def cell(row: int, column: int) -> str:
        count = cells[row][column]
        return f"<td{' class=hit' if row == column else ''}>{count:,}<small>{count / total:.1%}</small></td>"

    rows = ("not played", "played")
    body = "".join(f"<tr><th>{rows[n]}</th>{cell(n, 0)}{cell(n, 1)}</tr>" for n in (0, 1))
    return f'<table class="confusion"><tr><th></th><th>predicted no</th><th>predicted yes</th></tr>{body}</table>'


def _importance(document: Part) -> str:
    part = _part(document, "importance")
    panels = []
    for key, one, title, most in (("groups", "group", "Groups", 20), ("features", "feature", "Single features", 15)):
        rows = [row for row in part.get(key) or () if row.get("drop") is not None]
        for stage in dict.fromkeys(str(row.get("stage")) for row in rows):
            shown = sorted((row for row in rows if str(row.get("stage")) == stage), key=lambda row: -row["drop"])[:most]
            points = [dict(row, mean=row["drop"]) for row in shown]
            tones = ["accent" if (row.get("low") or 0) > 0 else "quiet" for row in shown]
            labels = [_cut(row.get(one), 26) for row in shown]
            chart = _dots(labels, tones, [_series("", points, signed=True)], f"drop in {part.get('metric')}", 0.0)
            panels.append(_panel(f"{title}: {NAMES.get(stage, stage) if stage != 'cascade' else 'cascade'}", chart))
    if not panels:
        return ""
    repeats, users = part.get("repeats"), part.get("users")
    setup = f" Measured on {_count(users)} users, every group shuffled {_times(repeats)}" if users and repeats else ""
    setup += f"; unshuffled {_number(part['base'])}." if setup and part.get("base") is not None else "." * bool(setup)
    notes = "".join(_read(str(note)) for note in part.get("notes") or ())
    how = "How much ranking loses when an input is shuffled; at the dotted line the model does not use it."
    return _read(how + setup) + _grid(panels) + notes


def _training(document: Part) -> str:
    lines = [line for line in document.get("training") or () if isinstance(line, Mapping)]
    epochs = [line.get("epoch", n) for n, line in enumerate(lines, 1)]
    losses = list(dict.fromkeys(key for line in lines for key in line if "loss" in key and _is_number(line[key])))
    stages = list(dict.fromkeys(key for line in lines for key in line if isinstance(line[key], Mapping)))
    panels = []
    for n, name in enumerate(losses):  # losses of different scale do not share an axis
        series = [_line("", epochs, [line.get(name) for line in lines], "accent" if not n else "quiet", marked=True)]
        panels.append(_panel(name.replace("_", " "), _lines("epoch", "loss", series, form=".3~f")))
    series = []
    for name in stages:
        values = [_first(_part(line, name), "ndcg")[1] for line in lines]
        if any(_is_number(value) for value in values):
            tone = "accent" if name == "cascade" else "quiet"
            series.append(
                _line(NAMES.get(name, name) if name != "cascade" else name, epochs, values, tone, marked=True)
            )
    if series:
        panels.insert(0, _panel("Validation ranking", _lines("epoch", "NDCG", series, form=".3~f")))
    if not panels:
        return ""
    how = "Losses should fall and validation should rise, then level off; a falling validation is overfitting."
    return _read(how) + _grid(panels, "grid three")


def _mistakes(document: Part) -> str:
    part = _part(document, "mistakes")
    stage = _part(part, "by_stage")
    bins = [row for row in part.get("by_popularity") or () if row.get("targets")]
    out = []
    if stage.get("targets"):
        rows = [("all targets", stage), *((str(row.get("bin")), row) for row in bins)]
        chart = _bars(
            [f"{_cut(name, 26)} · {_count(row['targets'])}" for name, row in rows],
            [
                ("in the list", "accent", "hit"),
                ("lost in reranking", "accent-soft", "lost_in_rerank"),
                ("lost in retrieval", "quiet-soft", "lost_in_retrieval"),
            ],
            [row for _, row in rows],
        )
        how = "What users went on to play: in their list, on the shortlist but ranked too low, or never retrieved. "
        out.append(_panel("Where targets get lost", chart, f"{how}Below, by listeners of the track in train."))
    tracks = [row for row in part.get("tracks") or () if isinstance(row, Mapping)]
    if tracks:
        listed = [
            [
                (str(row.get("title") or row.get("track_id")), str(row.get("track_id")) if row.get("title") else ""),
                *(_count(row.get(key)) for key in ("targets", "found", "listeners")),
            ]
            for row in tracks
        ]
        head = ["", "users who wanted it", "users who got it", "listeners in train"]
        out.append(_panel("Tracks missed most", _table(head, listed)))
    users = [_user(user) for user in part.get("users") or () if isinstance(user, Mapping)]
    if users:
        rest = _folded(f"{len(users) - SHOWN_USERS} more", "".join(users[SHOWN_USERS:])) if users[SHOWN_USERS:] else ""
        out.append(f"<h3>Users served worst</h3>{_read('Does the list look wrong, or just unlucky?')}")
        out.append("".join(users[:SHOWN_USERS]) + rest)
    how = "How often and where lists fail, and what that looks like for single tracks and people."
    return _read(how) + "".join(out) if out else ""


def _user(user: Part) -> str:
    metric, value = _first(user, "ndcg")

    def titles(key: str, tag: str) -> str:
        items = "".join(f"<li><bdi>{_text(title)}</bdi></li>" for title in user.get(key) or ())
        return f"<{tag}>{items}</{tag}>" if items else '<p class="faint">nothing</p>'

    return (
        f'<article class="panel user"><header><h3>{_text(user.get("user_id"))}</h3>'
        f'<span class="faint right">{_metric(metric or "ndcg")} {_number(value)}</span></header><div class="columns">'
        f"<div><h4>Had listened to</h4>{titles('history', 'ul')}</div>"
        f"<div><h4>Was recommended</h4>{titles('list', 'ol')}</div>"
        f"<div><h4>Went on to play, not in the list</h4>{titles('missed', 'ul')}</div></div></article>"
    )


def _data(document: Part) -> str:
    leaks = [leak for leak in document.get("leaks") or () if isinstance(leak, Mapping)]
    if not leaks:
        return ""
    rows = "".join(
        f"<tr><th class=key>{_text(leak.get('check'))}</th><td>{_badge(str(leak.get('verdict')))}</td>"
        f"<td>{_text(leak.get('found'))}</td></tr>"
        for leak in leaks
    )
    how = "Does training get to see what is asked for? A warning is worth a look, a leak makes every number flatter."
    return _read(how) + _panel("", f'<div class="scroll"><table>{rows}</table></div>')


def _protocol(document: Part) -> str:
    counts = {name.replace("_", " "): _count(value) for name, value in _part(document, "counts").items()}
    protocol = {name.replace("_", " "): _plain(value) for name, value in _part(document, "protocol").items()}
    panels = [_panel(title, _facts(rows)) for title, rows in (("Protocol", protocol), ("Counts", counts)) if rows]
    if not panels:
        return ""
    return _read("Two evaluations can be compared when their hash is the same.") + _grid(panels)


_SECTIONS: tuple[tuple[str, str, Callable[[Part], str]], ...] = (
    ("ranking", "Ranking", _ranking),
    ("paired", "Against the baselines", _paired),
    ("cascade", "What the shortlist costs", _cascade),
    ("cohorts", "Who is served well", _cohorts),
    ("beyond", "Beyond accuracy", _beyond),
    ("slices", "Cold corners", _slices),
    ("classification", "The head as a classifier", _classification),
    ("importance", "What the model relies on", _importance),
    ("training", "Training", _training),
    ("mistakes", "Mistakes", _mistakes),
    ("data", "Leak checks", _data),
    ("protocol", "Protocol", _protocol),
)


# -- charts: what report.js draws ---------------------------------------------------------------------------


def _series(name: str, values: Sequence[Part | None], open_: bool = False, signed: bool = False) -> Part:
    """A dot per value {"mean", "low", "high"}; None leaves its row empty."""
    points = []
    for value in values:
        part = value or {}
        mean, low, high = (part.get(key) for key in ("mean", "low", "high"))
        text = f"{_number(mean, signed=signed)} {_interval(part, signed)}".strip()
        points.append({"mean": mean, "low": low, "high": high, "text": text})
    return {"name": name, "open": open_, "points": points}


def _dots(
    labels: Sequence[str],
    tones: Sequence[str],
    series: Sequence[Part],
    x: str,
    reference: float | None = None,
    span: Sequence[float] | None = None,
) -> str:
    names = [_label(label) for label in labels]
    return _chart(
        {"kind": "dots", "labels": names, "tones": tones, "series": series, "x": _label(x), "reference": reference}
        | {"range": span, "format": ".3~f"},
        f"{x} of {', '.join(labels)}",
    )


def _line(name: str, x: Sequence[Any], y: Sequence[Any], tone: str = "accent", marked: bool = False) -> Part:
    return {"name": _label(name), "x": list(x), "y": list(y), "tone": tone, "marked": marked}


def _lines(
    x: str,
    y: str,
    series: Sequence[Part],
    depths: Sequence[int] = (),
    form: str = ".2~f",
    span: Sequence[float] | None = None,
) -> str:
    """depths: of a shortlist; they double from one to the next, so their axis is logarithmic."""
    marked = [dict(one, marked=one["marked"] or (bool(depths) and one["tone"] == "accent")) for one in series]
    ticks = {"ticks": list(depths), "log": True} if depths else {}
    spec = {"kind": "lines", "x": _label(x), "y": _label(y), "series": marked, "format": form, "range": span}
    return _chart(spec | ticks, f"{y} by {x}")


def _bars(labels: Sequence[str], parts: Iterable[tuple[str, str, str]], rows: Sequence[Part]) -> str:
    drawn = []
    for name, tone, key in parts:
        counts = [row.get(key) or 0 for row in rows]
        shares = [count / row["targets"] for count, row in zip(counts, rows, strict=True)]
        drawn.append({"name": name, "tone": tone, "counts": counts, "shares": shares})
    names = [_label(label) for label in labels]
    return _chart({"kind": "bars", "labels": names, "parts": drawn, "x": "share of targets"}, ", ".join(labels))


def _chart(spec: Part, alternative: str) -> str:
    data = json.dumps(spec, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="chart" role="img" aria-label="{_text(alternative)}">'
        f'<script type="application/json">{data}</script></div>'
    )


def _label(text: str) -> str:
    """Text for plotly, which reads a little HTML of its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# -- pieces of HTML -------------------------------------------------------------------------------------------


def _tiles(tiles: Sequence[str], columns: int, size: str = "") -> str:
    return f'<div class="tiles {size}" style="--columns: {columns}">{"".join(tiles)}</div>' if tiles else ""


def _ranked(label: str, metric: str, value: Part, main: bool = False) -> str:
    return _tile(label, _number(value.get("mean")), _metric(metric), _interval(value), main=main)


def _tile(label: str, value: str, *notes: str, main: bool = False) -> str:
    noted = "".join(f"<span>{_text(note)}</span>" for note in notes if note)
    return f'<div class="tile{" main" * main}"><span>{_text(label)}</span><b>{_text(value)}</b>{noted}</div>'


def _notice(verdict: str, title: str, items: Sequence[str]) -> str:
    listed = "".join(f"<li>{_text(item)}</li>" for item in items)
    return f'<div class="notice {verdict}"><h2>{title}</h2><ul>{listed}</ul></div>'


def _badge(verdict: str) -> str:
    known = verdict if verdict in ("ok", "warning", "leak") else "warning"
    return f'<span class="badge {known}">{_text(verdict)}</span>'


def _panel(title: str, body: str, how: str = "") -> str:
    heading = f"<h3>{_text(title)}</h3>" if title else ""
    return f'<div class="panel">{heading}{_read(how) if how else ""}{body}</div>'


def _grid(panels: Iterable[str], shape: str = "grid") -> str:
    """shape: `grid`, in rows of two; `grid three`, of three; `flow`, down one column and then the other."""
    return f'<div class="{shape}">{"".join(panels)}</div>'


def _read(text: str) -> str:
    return f'<p class="read">{_text(text)}</p>'


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{body}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: int = 1, wide: bool = False) -> str:
    """A table; a cell is a text or (text, note below it). Columns from `numbers` on stand to the right."""

    def cell(value: Any, column: int) -> str:
        text, note = value if isinstance(value, tuple) else (value, "")
        below = f'<br><span class="faint"><bdi>{_text(note)}</bdi></span>' if note else ""
        return f"<td{' class=right' if column >= numbers else ''}><bdi>{_text(text)}</bdi>{below}</td>"

    header = "".join(f"<th{' class=right' if n >= numbers else ''}>{_text(name)}</th>" for n, name in enumerate(head))
    body = "".join(f"<tr>{''.join(cell(value, n) for n, value in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table{" class=wide" if wide else ""}><tr>{header}</tr>{body}</table></div>'


def _facts(rows: Part) -> str:
    """A table of names and what they stand for."""
    body = "".join(f"<tr><th class=key>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{body}</table>"


# -- text and numbers -------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Escapes; a control character becomes a space."""
    return html.escape("".join(c if c.isprintable() else " " for c in str(value)))


def _plain(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _cut(value: object, width: int) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _number(value: object, digits: int = 3, signed: bool = False) -> str:
    if not _is_number(value):
        return DASH
    return f"{value:{'+' * signed}.{digits}f}".replace("-", "−")


def _share(value: object) -> str:
    return f"{value:.1%}" if _is_number(value) else DASH


def _count(value: object) -> str:
    return f"{value:,}" if _is_number(value) else DASH if value is None else str(value)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _interval(value: Part, signed: bool = False) -> str:
    low, high = value.get("low"), value.get("high")
    if low is None or high is None or low == high:
        return ""
    between = " to " if signed or low < 0 else "–"
    return f"{_number(low, signed=signed)}{between}{_number(high, signed=signed)}"


def _with_interval(value: Part | None, metric: str) -> Any:
    if not value:
        return DASH
    shown = _share(value.get("mean")) if metric.startswith("coverage") else _number(value.get("mean"))
    return (shown, _interval(value)) if _interval(value) else shown


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric(key: str) -> str:
    """ndcg@10 as people write it."""
    name, at, k = key.partition("@")
    return f"{METRICS.get(name, name)}{at}{k}"


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _defined(value: Any) -> Any:
    """The document without what is null: undefined and absent read the same."""
    if isinstance(value, Mapping):
        return {key: _defined(one) for key, one in value.items() if one is not None}
    return [_defined(one) for one in value if one is not None] if isinstance(value, list | tuple) else value


def _part(document: Part, key: str) -> Part:
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}


def _first(part: Part, kind: str) -> tuple[str, Any]:
    """(key, value) of the metric of this kind; at 10 when there is one, else the first; ("", None) without."""
    keys = [key for key in part if key.partition("@")[0] == kind]
    key = f"{kind}@10" if f"{kind}@10" in keys else next(iter(keys), "")
    return key, part.get(key)


def _of_kind(parts: Part, kind: str) -> list[str]:
    """The metrics kind@k of any of the parts, in the order met."""
    return list(dict.fromkeys(key for part in parts.values() for key in part or () if key.startswith(f"{kind}@")))


def _below(point: Part) -> bool:
    """Whether the whole interval is below 0."""
    return _is_number(point.get("high")) and point["high"] < 0
