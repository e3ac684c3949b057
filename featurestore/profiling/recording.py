"""What a profile collects, in bounded memory however long it runs.

Always true: the highest sample, every phase's exact peak and the peak of every band are kept. When
there are too many samples, neighbours make way two by two for the higher of them, and from then on
twice as many readings make one sample. Spans of partitions are joined two by two, phases likewise:
what remains says how many it stands for and keeps the highest of their figures. Like ``records``, it
imports no library: the sampling process is to stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any, Final, TypeVar

from featurestore.profiling.records import Phase, Sample, Span

FORMAT: Final = 2
MAX_SAMPLES: Final = 4000
MAX_PHASES: Final = 4000
MAX_SPANS: Final = 8000
MAX_CHILDREN: Final = 256
BETWEEN: Final = "between"
KILLED: Final = "killed"

T = TypeVar("T")


class Recording:
    """Samples, phases and spans as they come in."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._stride, self._pending, self._seen = 1, 0, 0
        self._peaks: dict[str, int] = {}
        self._children: dict[int, tuple[str, int]] = {}
        self._open_phases: dict[int, Phase] = {}
        self._phases: dict[int, Phase] = {}
        self._now_in: dict[int, int] = {}
        self._open_spans: dict[str, Span] = {}
        self._spans: list[Span] = []
        self._head: dict[str, Any] = {}

    # --- what the sampler sees ----------------------------------------------------------------------

    def add_sample(self, sample: Sample) -> None:
        """Keep a sample, alone or for the last few."""
        self._seen += 1
        for name, value in zip(sample._fields[1:], sample[1:], strict=True):
            self._peaks[name] = max(self._peaks.get(name, 0), int(value))
        if self._pending and self._samples:
            self._samples[-1] = max(self._samples[-1], sample, key=lambda one: one.held)
        else:
            self._samples.append(sample)
        self._pending = (self._pending + 1) % self._stride
        if len(self._samples) > MAX_SAMPLES:
            self._samples = [_highest(pair) for pair in _pairs(self._samples)]
            self._stride *= 2
            self._pending = 0

    def add_child(self, pid: int, held: int, name: Callable[[], str]) -> None:
        """Keep the peak of a process below."""
        if pid in self._children:
            known, peak = self._children[pid]
            self._children[pid] = (known, max(peak, held))
        else:
            self._children[pid] = (name(), held)
            if len(self._children) > 2 * MAX_CHILDREN:
                largest = sorted(self._children.items(), key=lambda one: -one[1][1])
                self._children = dict(largest[:MAX_CHILDREN])

    # --- what it is told ------------------------------------------------------------------------------

    def tell(self, message: list[Any]) -> None:
        """Take in a message: its kind, then what belongs to it."""
        kind, *rest = message
        if kind == "head":
            self._head.update(rest[0])
        elif kind == "sample":
            self.add_sample(Sample(*rest[0]))
        elif kind == "phase":
            number, fields = rest
            self._open_phases[number] = Phase(stop=fields["start"], **fields)
        elif kind == "phase ends":
            number, fields = rest
            self._phases[number] = replace(self._open_phases.pop(number), **fields)
            self._join_phases()
        elif kind == "phase drops":
            del self._open_phases[rest[0]]
        elif kind == "span":
            key, fields = rest
            self._open_spans[key] = Span(stop=fields["start"], **fields)
        elif kind == "span ends":
            key, stop = rest
            self._spans.append(replace(self._open_spans.pop(key), stop=stop))
            if len(self._spans) > MAX_SPANS:
                self._spans = _joined_spans(self._spans)

    def _join_phases(self) -> None:
        if len(self._phases) <= MAX_PHASES:
            return
        joined: dict[int, Phase] = {}
        for pair in _pairs(sorted(self._phases.items(), key=lambda one: one[1].start)):
            kept = pair[0][0]
            joined[kept] = _joined_phases([phase for _, phase in pair])
            for number, _ in pair[1:]:
                self._now_in[number] = kept
        self._phases = joined

    def _position_of(self, number: int) -> int:
        while number in self._now_in:
            number = self._now_in[number]
        return number

    # --- what comes of it -------------------------------------------------------------------------------

    def to_json(self, seconds: float) -> dict[str, Any]:
        """Return the recording; what is still open ends now."""
        phases = dict(self._phases)
        for number, phase in self._open_phases.items():
            phases[number] = replace(phase, stop=seconds, peak_bytes=self._sampled(phase.start))
        order = sorted(phases, key=lambda one: (phases[one].start, one))
        places = {number: place for place, number in enumerate(order)}
        spans = [
            *self._spans,
            *(replace(one, stop=seconds) for one in self._open_spans.values()),
        ]
        return {
            "format": FORMAT,
            "ended": KILLED,
            "seconds": seconds,
            "start_bytes": 0,
            "peak_bytes": self._sampled(0.0),
            "method": "sampled",
            "memory_limit": 0,
            "lines": {},
            "gpu": "",
            **self._head,
            "readings": self._seen,
            "peaks": self._peaks,
            "samples": [list(one) for one in sorted(self._samples)],
            "phases": [asdict(phases[number]) for number in order],
            "spans": [
                asdict(replace(one, phase=places[self._position_of(one.phase)]))
                for one in sorted(spans, key=lambda one: (one.start, one.lane))
                if self._position_of(one.phase) in places
            ],
            "children": [
                {"pid": pid, "name": name, "peak_bytes": peak}
                for pid, (name, peak) in sorted(self._children.items(), key=lambda one: -one[1][1])
            ][:MAX_CHILDREN],
        }

    def _sampled(self, start: float) -> int:
        """Return the most this process held since, as far as samples tell."""
        return max((one.resident for one in self._samples if one.seconds >= start), default=0)


def _pairs(items: list[T]) -> Iterable[list[T]]:
    return (items[i : i + 2] for i in range(0, len(items), 2))


def _highest(samples: list[Sample]) -> Sample:
    return max(samples, key=lambda one: one.held)


def _joined_phases(phases: list[Phase]) -> Phase:
    """Return one phase for neighbours: named for the higher one."""
    high = max(phases, key=lambda one: one.peak_bytes)
    return replace(
        high,
        start=min(one.start for one in phases),
        stop=max(one.stop for one in phases),
        start_bytes=phases[0].start_bytes,
        exact=all(one.exact for one in phases),
        count=sum(one.count for one in phases),
    )


def _joined_spans(spans: list[Span]) -> list[Span]:
    """Return at most ``MAX_SPANS`` spans, neighbours of one phase and lane joined.

    Where there are more phases and lanes than that, the longest are kept.
    """
    groups: dict[tuple[int, int], list[Span]] = {}
    for one in sorted(spans, key=lambda one: one.start):
        groups.setdefault((one.phase, one.lane), []).append(one)
    joined = [
        replace(
            max(pair, key=lambda one: one.bytes),
            start=pair[0].start,
            stop=max(one.stop for one in pair),
            count=sum(one.count for one in pair),
        )
        for group in groups.values()
        for pair in _pairs(group)
    ]
    if len(joined) > MAX_SPANS * 3 // 4:
        joined = sorted(joined, key=lambda one: one.start - one.stop)[: MAX_SPANS // 2]
    return joined
