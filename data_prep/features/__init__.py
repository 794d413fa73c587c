"""Features of tiles: encoding a slide, prefetching, many hosts."""
