"""Who runs the core over the log's partitions: `local`, one process on one machine."""
