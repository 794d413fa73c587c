"""The data loader: bags in device memory, sharded over devices, or streamed with prefetching."""
