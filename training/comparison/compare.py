"""Running a comparison: the cells one after the other, then what differs.

    comparison/
      compare.json       what it was begun with: see ``training.comparison.folder``
      runs/ cells/ predictions/        see ``training.comparison.cells``
      comparison.json    what was found; from the end on

Always true: all cells see one snapshot, the same folds, seeds and number of epochs or rounds; packs are
shared. A comparison that was killed goes on where it was, and finds what it would have found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from featurestore.arguments import shown
from featurestore.dataset.batch import HostArray
from featurestore.dataset.split import length, length_steps
from featurestore.errors import InvalidInputError
from featurestore.times import from_steps
from training.comparison.cells import Cell, CellFolder, CellResult
from training.comparison.config import BASE, CompareConfig
from training.comparison.folder import Begun, begun, folder_of, held, note
from training.comparison.result import Comparison, Period, VariantResult, Verdict, judged
from training.comparison.scores import IC, Predictions, score
from training.comparison.statistics import (
    FOLDS,
    Interval,
    Judged,
    blocks_of,
    corrected_t,
    holm,
    jackknife,
)
from training.run_loaders import parts_of
from training.source import open_dataset, open_table, task_of
from training.split_config import split_config

if TYPE_CHECKING:
    from featurestore.dataset.split import Split
    from featurestore.schema import TableSchema
    from featurestore.table import Table

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
    settings: dict[str, Any] = {"seeds": _listed(seeds)}
    if metric is not None:
        settings["metric"] = metric
    data = {
        "store": table.store_url,
        "table": table.name,
        "features": _listed(base),
        "label": label,
        "snapshot": table.version,
    }
    config = CompareConfig.from_mapping(
        {
            **sections,
            "data": _section("data", sections.get("data", {}), data),
            "split": split_config(split),
            "model": {"kind": model} if isinstance(model, str) else model,
            "train": {} if train is None else train,
            "compare": _section("compare", sections.get("compare", {}), settings),
            "variants": variants,
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
    folder = folder_of(config, output, resume=resume)
    known = begun(folder, config, resume=resume)
    if known is None:
        seen = _looked_at(config)
    with held(folder):
        if known is None:
            known = begun(folder, config, resume=resume) or seen
            note(folder, config, known)
        if known.leaks and say is not None:
            say(f"these features know what was not known yet: {list(known.leaks)}")
        place = CellFolder(folder)
        found = _cells_of(config, place, known, say)
        comparison = _concluded(config, place, known, found)
        comparison.save()
        return comparison


def _cells_of(
    config: CompareConfig, place: CellFolder, known: Begun, say: Callable[[str], None] | None
) -> list[CellResult]:
    """Return what came of each cell; those that are not complete are computed."""
    cells, found = _cells(config), list[CellResult]()
    try:
        for number, cell in enumerate(cells, 1):
            result = place.result(cell, known.task)
            if result is None:
                if say is not None:
                    say(
                        f"[{number}/{len(cells)}] {cell.variant}, fold {cell.fold}, seed {cell.seed}"
                    )
                result = place.compute(cell, config, known.snapshot, known.task, say)
            found.append(result)
    except KeyboardInterrupt as error:
        error.add_note(f"What is done is kept; go on with --resume --output {place.path}")
        raise
    return found


def _listed(given: Any) -> Any:
    """Return several values as a list; what is not several as it is, to be refused in words."""
    if isinstance(given, np.ndarray):
        return given.tolist()
    return given if isinstance(given, str) or not isinstance(given, Iterable) else list(given)


def _section(name: str, given: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section: what arguments of their own say of it, and what is given besides."""
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"compare(): {name}={shown(given)} is no section", f"give a mapping of keys of [{name}]"
        )
    twice = sorted({*own} & {*given})
    if twice:
        raise InvalidInputError(
            f"compare(): {name}= names {twice}, which the table or other arguments say",
            "leave it out",
        )
    return {**own, **given}


def _looked_at(config: CompareConfig) -> Begun:
    """Return snapshot, task and leaks, having seen that every variant can be trained, on each fold.

    Raises
    ------
    FeatureStoreError
    """
    table = open_table(config.run)
    datasets = []
    for name in config.names:
        one = Cell(name, 0, 0, 0).config(config, config.run.data.snapshot)
        datasets.append(open_dataset(one, table))
    one = Cell(BASE, 0, 0, 0).config(config, config.run.data.snapshot)
    task = task_of(one, datasets[0].schema)
    if config.metric(task) == IC and table.time is None:
        raise InvalidInputError(
            f"metric {IC!r} is of the rows of one time, and table {table.name!r} has no time",
            "compare by another metric",
        )
    for fold in range(config.folds):  # hours of training come before the last one
        one = Cell(BASE, 0, fold, 0).config(config, config.run.data.snapshot)
        parts_of(one, open_dataset(one, table))
    leaks, unchecked = _leaks(config, table)
    return Begun(datasets[0].snapshot_id, task, tuple(sorted(leaks)), unchecked)


def _cells(config: CompareConfig) -> list[Cell]:
    """Return all cells, those that are compared with each other close together."""
    return [
        Cell(name, place, fold, seed)
        for fold in range(config.folds)
        for seed in config.settings.seeds
        for place, name in enumerate(config.names)
    ]


def _concluded(
    config: CompareConfig, place: CellFolder, known: Begun, found: Sequence[CellResult]
) -> Comparison:
    snapshot, task = known.snapshot, known.task
    metric = config.metric(task)
    table = open_table(replace(config.run, data=replace(config.run.data, snapshot=snapshot)))
    sizes = table.describe().column_bytes
    differences = [
        _difference(config, place, task, metric, name, found, table.schema)
        for name in config.variants
    ]
    adjusted = holm([one.p for one in differences])
    own = tuple(one for one in config.features(BASE) if one in known.leaks)
    results = [_summed(config, metric, BASE, found, None, math.nan, own, {})]
    for name, difference, p in zip(config.variants, differences, adjusted, strict=True):
        leaking = tuple(one for one in config.added(name) if one in known.leaks)
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
        known.unchecked,
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
    told = place.rows_of([one.cell for pair in pairs for one in pair])
    first = told[0]

    def difference(kept: HostArray) -> float:
        each = [
            score(task, metric, b.rows(kept)) - score(task, metric, a.rows(kept))
            for a, b in zip(told[::2], told[1::2], strict=True)
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
        base = Cell(BASE, 0, fold, seeds[0])
        rows = place.predictions(base)
        assert rows.time is not None
        parts = _stretches(rows, each)
        bounds = [
            [from_steps(int(rows.time[at]), type_) for at in (part.start, part.stop - 1)]
            for part in parts
        ]
        del rows
        told = {
            name: [
                _scores(place, (base, Cell(name, number, fold, seed)), task, metric, parts)
                for seed in seeds
            ]
            for number, name in enumerate(config.names)
        }
        for number, (first, last) in enumerate(bounds):
            scores = {
                name: float(np.mean([one[number] for one in some])) for name, some in told.items()
            }
            yield Period(fold, first, last, scores)


def _scores(
    place: CellFolder, base_and_cell: Sequence[Cell], task: str, metric: str, parts: Sequence[slice]
) -> list[float]:
    """Return the metric of some stretches of a cell's rows, which are those of the base."""
    rows = place.rows_of(base_and_cell)[1]
    return [score(task, metric, rows.rows(part)) for part in parts]


def _stretches(rows: Predictions, count: int) -> list[slice]:
    """Return so many stretches of about equal numbers of rows, none of which parts a time."""
    block = blocks_of(len(rows), rows.time)
    which = block * count // (int(block[-1]) + 1)
    starts = np.flatnonzero(np.concatenate([[True], which[1:] != which[:-1]])).tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
