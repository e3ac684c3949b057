"""Running a comparison: the cells one after the other, then what differs.

    comparison/
      compare.json       the resolved configuration, the snapshot and the task; from the first cell on
      runs/ cells/ predictions/        see ``training.comparison.cells``
      comparison.json    what was found; from the end on

Always true: all cells see one snapshot, the same folds, seeds and number of epochs or rounds; packs are
shared. A comparison that was killed goes on where it was, and finds what it would have found.

Trade-off: one process works on a comparison; a second one that resumes it meanwhile is not noticed.
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from featurestore.dataset.batch import HostArray
from featurestore.dataset.split import length, length_steps
from featurestore.errors import InvalidInputError, NameTakenError
from featurestore.times import from_steps
from training.comparison.cells import Cell, CellFolder, CellResult
from training.comparison.config import BASE, CompareConfig
from training.comparison.result import Comparison, Period, VariantResult, Verdict, judged
from training.comparison.scores import Predictions, score
from training.comparison.statistics import (
    FOLDS,
    Interval,
    Judged,
    blocks_of,
    corrected_t,
    holm,
    jackknife,
)
from training.durable import read_json, write_json
from training.source import open_dataset, open_table, task_of
from training.split_config import split_config
from training.unfinished import different_keys

if TYPE_CHECKING:
    from featurestore.dataset.split import Split
    from featurestore.schema import TableSchema
    from featurestore.table import Table

COMPARISONS: Final = Path("comparisons")
"""Where comparisons go that are not told where."""
_BEGUN: Final = "compare.json"
_PERIODS: Final = 12
"""Stretches of time that the metric is told of, over all folds."""


def compare(
    table: Table,
    label: str,
    base: Sequence[str],
    variants: Mapping[str, Sequence[str]],
    *,
    split: Split,
    model: str | Mapping[str, Any] = "xgboost",
    seeds: Sequence[int] = (0,),
    metric: str | None = None,
    train: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
    **sections: Mapping[str, Any],
) -> Comparison:
    """Train with and without features, on the same folds with the same seeds, and say what differs.

    Parameters
    ----------
    table : Table
        At its newest version, or that of a checkout; all trainings see that one.
    label : str
    base : sequence of str
        Features of every variant.
    variants : mapping of str to sequence of str
        The features that each has besides, under a name; none gives a variant that equals the base.
    split : Split
        ``fs.TimeSplit``, ``WalkForward``, ``PurgedKFold``, ``HashSplit`` or ``HashKFold``.
    model : str or mapping
        The kind, or ``[model]`` of ``train.toml``.
    seeds : sequence of int
    metric : str, optional
        binary: ``"auc"`` (default), ``"loss"``, ``"accuracy"``; regression: ``"rmse"`` (default), ``"mae"``,
        ``"loss"``, ``"r2"``, ``"ic"`` (mean rank correlation per time); multiclass: ``"loss"`` (default),
        ``"accuracy"``.
    train : mapping, optional
        ``[train]`` of ``train.toml``: ``epochs``, ``batch_size``, ``learning_rate``, ``early_stopping``, ...
    output : path, optional
        The folder; ``comparisons/<time>-<table>`` if not given.
    resume : bool
        Go on with the comparison that ``output`` holds.
    say : function, optional
        Gets a line of progress now and then.
    **sections
        More of ``compare.toml``: ``pipeline``, ``loader``, ``compare`` (``importance``, ``leakage``,
        ``leak_rows``) and ``data`` (``where``, ``weight``, ``drop_unlabelled``, ``memory_limit``).

    Returns
    -------
    Comparison

    Raises
    ------
    InvalidInputError, NotReadyError, SchemaError, MissingDependencyError
        Before anything is trained, if an argument is wrong, or a column is missing or stale.
    NameTakenError
        If the folder is there and ``resume`` is not asked for, or it is of another comparison.

    Examples
    --------
    ``training.compare(prices, "up", base=["ret_1d"], variants={"with news": ["news_7d"]},
    split=fs.WalkForward("2024-01-01", 4, "30d", horizon="5d"), train={"epochs": 50})``
    """
    settings = {"seeds": list(seeds), **sections.pop("compare", {})}
    if metric is not None:
        settings["metric"] = metric
    data = {
        "store": table.store_url,
        "table": table.name,
        "features": list(base),
        "label": label,
        "snapshot": table.version,
        **sections.pop("data", {}),
    }
    config = CompareConfig.from_mapping(
        {
            **sections,
            "data": data,
            "split": split_config(split),
            "model": {"kind": model} if isinstance(model, str) else dict(model),
            "train": dict(train or {}),
            "compare": settings,
            "variants": {name: list(one) for name, one in variants.items()},
        },
        "compare()",
    )
    return run_comparison(config, output, resume=resume, say=say)


def run_comparison(
    config: CompareConfig,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Run what a configuration says; see :func:`compare`.

    Raises
    ------
    KeyboardInterrupt
        With a note that says how to go on.
    """
    folder, begun = _folder(config, output, resume=resume)
    if not begun:
        begun = _looked_at(config)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _BEGUN, begun)
    if begun["leaks"] and say is not None:
        say(f"these features know what was not known yet: {begun['leaks']}")
    snapshot, task = begun["snapshot"], begun["task"]
    cells, place = _cells(config), CellFolder(folder)
    found: list[CellResult] = []
    try:
        for number, cell in enumerate(cells, 1):
            result = place.result(cell)
            if result is None:
                if say is not None:
                    say(
                        f"[{number}/{len(cells)}] {cell.variant}, fold {cell.fold}, seed {cell.seed}"
                    )
                result = place.compute(cell, config, snapshot, task, say)
            found.append(result)
    except KeyboardInterrupt as error:
        error.add_note(f"What is done is kept; go on with --resume --output {folder}")
        raise
    comparison = _concluded(config, place, begun, found)
    comparison.save()
    return comparison


def _folder(
    config: CompareConfig, output: str | Path | None, *, resume: bool
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a comparison, and what it was begun with."""
    if output is None:
        if resume:
            raise InvalidInputError(
                "there is no telling which comparison to go on with", "name its folder as output"
            )
        now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")
        output = COMPARISONS / f"{now}-{config.run.data.table}-{uuid.uuid4().hex[:4]}"
    folder = Path(output).expanduser()
    if not folder.exists():
        return folder, {}
    if not (folder / _BEGUN).is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            return folder, {}
        raise NameTakenError(
            f"{folder} exists and is no comparison", "name another output, or delete it"
        )
    if not resume:
        raise NameTakenError(
            f"{folder} holds a comparison already",
            "go on with it with --resume (resume=True), name another output, or delete it",
        )
    begun = read_json(folder / _BEGUN, f"delete {folder}, or name another output")
    different = different_keys(begun["config"], config.to_json())
    if different:
        raise NameTakenError(
            f"{folder} is of another comparison: {different} differ",
            "name another output, or undo the change",
        )
    return folder, begun


def _looked_at(config: CompareConfig) -> dict[str, Any]:
    """Return snapshot, task and leaks, having seen that every variant can be trained on every fold.

    Raises
    ------
    FeatureStoreError
    """
    run = config.run
    table = open_table(run)
    snapshot = run.data.snapshot
    for fold in range(config.folds):
        one = Cell(BASE, 0, fold, 0).config(config, snapshot)
        dataset = open_dataset(one, table)
        for name, part in (("train", dataset.train), ("valid", dataset.valid)):
            if not part.rows:
                raise InvalidInputError(
                    f"the {name} part of fold {fold} has no rows (split {run.to_json()['split']})",
                    "move the boundaries of [split] to where the table has rows",
                )
    task = task_of(one, dataset.schema)
    config.metric(task)
    for place, name in enumerate(config.names):
        open_dataset(Cell(name, place, 0, 0).config(config, snapshot), table)
    leaks, unchecked = _leaks(config, table)
    return {
        "snapshot": dataset.snapshot_id,
        "task": task,
        "leaks": sorted(leaks),
        "unchecked": unchecked,
        "config": config.to_json(),
    }


def _cells(config: CompareConfig) -> list[Cell]:
    """Return all cells, those that are compared with each other close together."""
    return [
        Cell(name, place, fold, seed)
        for fold in range(config.folds)
        for seed in config.settings.seeds
        for place, name in enumerate(config.names)
    ]


def _concluded(
    config: CompareConfig, place: CellFolder, begun: Mapping[str, Any], found: Sequence[CellResult]
) -> Comparison:
    snapshot, task, leaks = begun["snapshot"], begun["task"], set(begun["leaks"])
    metric = config.metric(task)
    table = open_table(replace(config.run, data=replace(config.run.data, snapshot=snapshot)))
    sizes = table.describe().column_bytes
    differences = [
        _difference(config, place, task, metric, name, found, table.schema)
        for name in config.variants
    ]
    adjusted = holm([one.p for one in differences])
    own = tuple(one for one in config.features(BASE) if one in leaks)
    results = [_summed(config, metric, BASE, found, None, math.nan, own, {})]
    for name, difference, p in zip(config.variants, differences, adjusted, strict=True):
        leaking = tuple(one for one in config.added(name) if one in leaks)
        costs = {one: sizes[one] for one in config.added(name)}
        results.append(_summed(config, metric, name, found, difference, p, leaking, costs))
    return Comparison(
        place.path,
        config.to_json(),
        snapshot,
        task,
        metric,
        config.folds,
        len(config.settings.seeds),
        tuple(results),
        tuple(_periods(config, place, task, metric, table.schema)),
        begun["unchecked"],
    )


def _leaks(config: CompareConfig, table: Table) -> tuple[set[str], dict[str, str]]:
    """Return which features leak, of the base and of variants, and which were not checked."""
    added = list(dict.fromkeys(one for name in config.names for one in config.features(name)))
    if not config.settings.leakage:
        return set(), dict.fromkeys(added, "not asked for")
    defined = {column for one in table.status().features for column in one.columns}
    unchecked = {one: "ingested, not computed" for one in added if one not in defined}
    if table.time is None:
        return set(), dict.fromkeys(added, "the table has no time")
    checked = [one for one in added if one in defined]
    if not checked:
        return set(), unchecked
    report = table.check_leakage(checked, sample=config.settings.leak_rows)
    return {one.column for one in report.leaks}, {
        **unchecked,
        **{name: why for name, why in report.unchecked.items() if name in checked},
    }


def _of(found: Iterable[CellResult], name: str) -> list[CellResult]:
    return [one for one in found if one.cell.variant == name]


def _summed(
    config: CompareConfig,
    metric: str,
    name: str,
    found: Sequence[CellResult],
    difference: Interval | None,
    p: float,
    leaks: tuple[str, ...],
    sizes: Mapping[str, int],
) -> VariantResult:
    own = _of(found, name)
    verdict, reason = (
        (Verdict.BASE, f"{', '.join(leaks)} leak: see table.check_leakage" if leaks else "")
        if difference is None
        else judged(metric, difference, p, leaks)
    )
    shuffled = [one.importance for one in own if one.importance]
    return VariantResult(
        name,
        config.added(name),
        float(np.mean([one.scores[metric] for one in own])),
        {key: float(np.mean([one.scores[key] for one in own])) for key in own[0].scores},
        tuple((one.cell.fold, one.cell.seed, one.scores[metric]) for one in own),
        difference,
        p,
        verdict,
        reason,
        leaks,
        {
            key: float(np.mean([one[key] for one in shuffled]))
            for key in (shuffled[0] if shuffled else ())
        },
        float(np.mean([one.seconds for one in own])),
        sizes,
    )


def _difference(
    config: CompareConfig,
    place: CellFolder,
    task: str,
    metric: str,
    name: str,
    found: Sequence[CellResult],
    schema: TableSchema,
) -> Interval:
    """Return how a variant differs from the base."""
    pairs = list(zip(_of(found, BASE), _of(found, name), strict=True))
    if config.folds >= FOLDS:
        # Seeds are no further data: they are averaged first.
        by_fold = [
            np.mean([b.scores[metric] - a.scores[metric] for a, b in pairs if a.cell.fold == fold])
            for fold in range(config.folds)
        ]
        share = float(np.mean([a.valid_rows / a.train_rows for a, _ in pairs]))
        return corrected_t([float(one) for one in by_fold], share)
    split = config.run.split
    ahead = max(
        length_steps(length(one, "horizon"), schema) for one in (split.horizon, split.embargo)
    )
    return jackknife(
        _judged(place, task, metric, [(a, b) for a, b in pairs if a.cell.fold == fold], ahead)
        for fold in range(config.folds)
    )


def _judged(
    place: CellFolder,
    task: str,
    metric: str,
    pairs: Sequence[tuple[CellResult, CellResult]],
    horizon: int,
) -> Judged:
    """Return the rows of one fold, whose difference is the mean over seeds."""
    told = [(place.predictions(a.cell), place.predictions(b.cell)) for a, b in pairs]
    first = told[0][0]

    def difference(kept: HostArray) -> float:
        each = [
            score(task, metric, b.rows(kept)) - score(task, metric, a.rows(kept)) for a, b in told
        ]
        return float(np.mean(each))

    return Judged(len(first), first.time, difference, horizon)


def _periods(
    config: CompareConfig, place: CellFolder, task: str, metric: str, schema: TableSchema
) -> Iterable[Period]:
    """Yield the metric over time, of each variant."""
    if schema.time is None:
        return
    type_, each = schema[schema.time].type, max(1, _PERIODS // config.folds)
    seeds = config.settings.seeds
    for fold in range(config.folds):
        rows = place.predictions(Cell(BASE, 0, fold, seeds[0]))
        assert rows.time is not None
        parts = _stretches(rows, each)
        bounds = [
            [from_steps(int(rows.time[at]), type_) for at in (part.start, part.stop - 1)]
            for part in parts
        ]
        del rows
        told = {
            name: [
                _scores(place, Cell(name, number, fold, seed), task, metric, parts)
                for seed in seeds
            ]
            for number, name in enumerate(config.names)
        }
        for number, (first, last) in enumerate(bounds):
            yield Period(
                fold, first, last,
                {name: float(np.mean([one[number] for one in some])) for name, some in told.items()},
            )  # fmt: skip


def _scores(
    place: CellFolder, cell: Cell, task: str, metric: str, parts: Sequence[slice]
) -> list[float]:
    """Return the metric of some stretches of a cell's rows."""
    rows = place.predictions(cell)
    return [score(task, metric, rows.rows(part)) for part in parts]


def _stretches(rows: Predictions, count: int) -> list[slice]:
    """Return so many stretches of about equal numbers of rows, none of which parts a time."""
    block = blocks_of(len(rows), rows.time)
    which = block * count // (int(block[-1]) + 1)
    starts = np.flatnonzero(np.concatenate([[True], which[1:] != which[:-1]])).tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
