"""From files to bags on a device: shards, cohorts, splits, buckets, residency."""
