"""What came of it: measurements on trained models."""
