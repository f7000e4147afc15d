"""What this service can do."""
