"""Reading a row group of a parquet file as a whole, within a limit of memory.

A few hundred bytes may stand for gigabytes: a value that is stored once and named by every row, or
values that share their beginnings. So texts and bytes stay in the form in which they are stored
once, what they would take is added up first, and the rest is told by the file's metadata.
"""

from pathlib import Path
from typing import Any

from metamorph.errors import SampleError, UserError, in_words

LARGEST_GROUP = 2**29  # bytes, decoded
MOST_VALUES = 2**20  # in the lists of one cell
BATCH = 2**26  # bytes to decode before they are counted, where metadata cannot tell
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
WIDTHS["BYTE_ARRAY"] = 8  # an index or an offset each; their bytes are counted when read
LEVELS = 4  # bytes of a value that say how deep in lists it stands
DICTIONARY = ("RLE_DICTIONARY", "PLAIN_DICTIONARY")
PREFIXED = "DELTA_BYTE_ARRAY"  # the encoding in which a value repeats the beginning of the last


ADVICE = (
    f"at most {LARGEST_GROUP // 2**20} MiB can be used; write the file anew with row_group_size of "
    f"some hundred rows"
)


def check_group(file: Path, metadata: Any, number: int) -> None:
    """Raises `UserError` for a row group of which the metadata says that it is too large."""
    group = metadata.row_group(number)
    size = group.total_byte_size
    decoded, encoded = 0, 0
    for place in range(group.num_columns):
        column, kind = group.column(place), metadata.schema.column(place)
        width = WIDTHS.get(column.physical_type, kind.length)
        decoded += column.num_values * (width + LEVELS)
        encoded += column.total_uncompressed_size
        in_lists = kind.max_repetition_level > 0
        if in_lists and PREFIXED in column.encodings:
            decoded += column.num_values * column.total_uncompressed_size
    size = max(size, encoded, decoded)
    if size > LARGEST_GROUP:
        raise UserError(
            f"data.path: row group {number} of {file} may take {size / 2**20:.0f} MiB when "
            f"decoded, {ADVICE}"
        )


def read_group(file: Path, number: int) -> dict[str, Any]:
    """The columns of a row group, chunked arrays of pyarrow.

    Raises `SampleError` if they cannot be read, or take more than `LARGEST_GROUP` decoded.
    """
    from pyarrow import ArrowException, Table
    from pyarrow.parquet import ParquetFile, read_metadata

    try:
        group = read_metadata(file).row_group(number)
        columns = [group.column(place) for place in range(group.num_columns)]
        once = [column.path_in_schema for column in columns if _is_stored_once(column)]
        # A value is no longer than its whole column, so a batch has a limit, too.
        longest = sum(
            column.total_uncompressed_size
            for column in columns
            if column.physical_type == "BYTE_ARRAY" and not _is_stored_once(column)
        )
        rows = min(max(BATCH // max(longest, 1), 1), group.num_rows)
        batches, decoded = [], 0
        with ParquetFile(
            file, read_dictionary=once, page_checksum_verification=True, pre_buffer=False
        ) as parquet:
            for batch in parquet.iter_batches(rows, row_groups=[number]):
                decoded += sum(map(decoded_bytes, batch.columns))
                if decoded > LARGEST_GROUP:
                    raise SampleError(
                        "row group too large",
                        f"the group takes {decoded / 2**20:.0f} MiB or more when decoded, {ADVICE}",
                    )
                batches.append(batch)
        table = Table.from_batches(batches)
    except (ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        problem = f"the group cannot be read: {in_words(error)}"
        raise SampleError("unreadable row group", problem) from error
    return dict(zip(table.column_names, table.columns, strict=True))


def _is_stored_once(column: Any) -> bool:
    """Whether to keep a column in the form in which each value is stored once.

    Of a large one that takes several times its size, and is not worth it: few values repeat.
    """
    encodings = column.encodings
    return (
        column.physical_type == "BYTE_ARRAY"
        and any(name in encodings for name in DICTIONARY)
        and PREFIXED not in encodings
        and column.total_uncompressed_size <= BATCH
    )


def decoded_bytes(array: Any) -> int:
    """Bytes that an array of pyarrow takes once each value is written out."""
    from pyarrow import compute, types

    if types.is_dictionary(array.type):
        lengths = compute.binary_length(array.dictionary)
        return (compute.sum(lengths.take(array.indices)).as_py() or 0) + array.indices.nbytes
    if types.is_nested(array.type):
        return array.nbytes + sum(map(decoded_bytes, _children(array)))
    return array.nbytes


def values_in(array: Any) -> int:
    """How many values an array of pyarrow holds, those in lists each."""
    from pyarrow import types

    if types.is_nested(array.type):
        return sum(map(values_in, _children(array)))
    return len(array)


def _children(array: Any) -> list[Any]:
    from pyarrow import types

    if types.is_struct(array.type):
        return array.flatten()
    if not types.is_map(array.type):
        return [array.flatten()]
    start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()  # in keys and values
    return [array.keys.slice(start, end - start), array.items.slice(start, end - start)]
