"""The forms in which datasets come: folders, tables, shards, repositories and classes of torchvision."""
