"""What the folder of a model or judge may hold. Checked before any library reads it."""
