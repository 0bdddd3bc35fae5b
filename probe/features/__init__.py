"""Features of images: extraction, the cache, and files that hold features."""
