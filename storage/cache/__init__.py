"""A local cache before an object store, shared by several processes, within a limit of bytes."""
