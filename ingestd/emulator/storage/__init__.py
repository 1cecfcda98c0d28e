"""What a server keeps, and how it gets there: index, files, the store, deletion, long-running work; no HTTP."""
