"""Makes the Parquet files of fine-tuning data: `python bench/goldens/parquet_files.py fixtures/parquet` with pyarrow 26.0.1."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = [
    {"id": 1, "messages": [{"role": "user", "content": "add one to two"}, {"role": "assistant", "content": "three"}]},
    {
        "id": 2,
        "messages": [
            {"role": "user", "content": "die Zahl nach fünf"},
            {"role": "assistant", "content": "sechs"},
            {"role": "user", "content": "and one more"},
            {"role": "assistant", "content": "seven"},
        ],
    },
]
for compression in ["snappy", "gzip", "zstd", "none"]:
    pq.write_table(pa.Table.from_pylist(ROWS), f"{sys.argv[1]}/{compression}.parquet", compression=compression)
