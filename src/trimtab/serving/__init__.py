"""What an engine says of itself, what that means, and the lever that fits. Pure: texts in, values out."""
