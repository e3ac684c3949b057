"""One part of a dataset: the rows a model trains on, or is tuned or judged on.

Nothing is read before it is needed. Counting rows reads only the columns that decide which rows are
in, and only of partitions that a boundary cuts or a condition concerns; arrays are made one
partition at a time.

Always true: rows come in table order, and which rows, which values and which digest do not depend
on how the table is cut into partitions' files by unrelated features or later commits.

The dataset's condition (``where``) and a split by time select before the pipeline sees a row; a
split by hash selects after it, so that a cross-section of one timestamp is the same in all parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.dataset.assembly import dataset_batch
from featurestore.dataset.batch import Batch, DatasetSchema
from featurestore.dataset.selection import Selection
from featurestore.dataset.view import ReadTask, TableView
from featurestore.errors import InvalidInputError, MemoryLimitError, UnsupportedError
from featurestore.execution.tasks import select_rows
from featurestore.fingerprint import fingerprint
from featurestore.schema import TableSchema
from featurestore.transforms.base import Partition
from featurestore.units import format_bytes

if TYPE_CHECKING:
    from featurestore.engines.protocol import Array, Engine
    from featurestore.transforms.pipeline import FittedPipeline
