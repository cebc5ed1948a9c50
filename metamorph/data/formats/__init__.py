"""Files of samples, each an index to records: JSON lines, WebDataset, Parquet."""
