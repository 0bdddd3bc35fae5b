"""Export of records to experiment trackers: Weights & Biases, MLflow and Trackio. A record is never read back."""
