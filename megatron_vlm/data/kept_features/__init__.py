"""What a frozen encoder makes of a dataset's pictures, kept in an indexed file beside it."""
