"""Forms of sources: folders, tables, shards, repositories and classes of torchvision."""
