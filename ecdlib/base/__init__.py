"""What everything stands on: errors, bundled files, the cache, provenance, workers."""
