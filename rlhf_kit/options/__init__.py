"""What can be set: bounds of numbers, and text as the type that a field declares."""
