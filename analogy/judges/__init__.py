"""What scores how well an image shows a prompt; the margin."""
