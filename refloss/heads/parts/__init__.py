"""What heads share."""
